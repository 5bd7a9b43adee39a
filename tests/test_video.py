"""predict.py on videos and cameras: times, damaged files, tracking, smoothing."""

import json
import resource
import struct
import threading
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from photos import run, save, table
from PIL import Image

from data.dataset import EMOTIONS
from inference.inputs import is_video
from inference.predictor import FacePredictor
from inference.tracking import MAX_STEPS, STEP, Tracker
from inference.video import Camera, VideoFile
from inference.video_writer import VideoWriter
from utils.errors import DataError
from utils.plots import plot_expressions_over_time

# Reading


def write_video(path, frames, code="mp4v", rate=10):
    """Write a video with OpenCV, which is not used for reading."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def encode(stream, frames):
    """Yield the packets of frames encoded by PyAV, whose streams have more settings."""
    stream.height, stream.width = frames[0].shape[:2]
    for image in frames:
        yield from stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
    yield from stream.encode(None)


def frames_of(path):
    return {number: frame for number, _, frame in VideoFile(path).frames()}


@pytest.fixture(scope="module")
def moving(both):
    """24 frames: the astronaut appears, moves to the left, and disappears."""
    blank = np.full((360, 480, 3), 100, np.uint8)
    return [blank] * 2 + [both[30:390, 4 * i : 480 + 4 * i] for i in range(20)] + [blank] * 2


@pytest.mark.parametrize("number", [0, 5])
def test_a_face_in_one_frame_is_recorded_but_not_drawn(
    constant_runtime, tmp_path, moving, capsys, monkeypatch, number
):
    frames = [moving[0]] * 10
    frames[number] = moving[5]
    drawn = []
    monkeypatch.setattr(
        "inference.runner.annotate", lambda image, faces, names: drawn.extend(faces) or image
    )
    assert run(write_video(tmp_path / "film.mp4", frames), "--out", tmp_path / "o") == 0
    assert "film.mp4: 10 frames, 0 faces" in capsys.readouterr().out.splitlines()
    assert [int(row["frame"]) for row in table(tmp_path / "o")] == [number]
    assert drawn == []


@pytest.mark.usefixtures("drawn_figures")
def test_a_video_has_records_an_annotated_copy_and_a_plot(
    constant_runtime, tmp_path, moving, capsys
):
    file = write_video(tmp_path / "film.mp4", moving)
    assert run(file, "--out", tmp_path / "o") == 0
    expected = "film.mp4: 24 frames, 1 face; happy 100 % of the time"
    assert expected in capsys.readouterr().out.splitlines()
    rows = [row for row in table(tmp_path / "o") if row["face"] == "0"]
    assert [int(row["frame"]) for row in rows] == list(range(2, 22))
    assert [float(row["time"]) for row in rows] == pytest.approx(np.arange(2, 22) / 10)
    assert {row["annotated"] for row in rows} == {"film_faces.mp4"}
    lefts = [float(row["left"]) for row in rows]
    assert lefts[0] - lefts[-1] == pytest.approx(76, abs=15)
    video = VideoFile(tmp_path / "o/film_faces.mp4")
    assert (video.rate, video.num_frames) == (10, 24)
    frames = frames_of(tmp_path / "o/film_faces.mp4")
    assert frames[10].shape == (360, 480, 3)
    left, top = (int(float(rows[8][k])) for k in ("left", "top"))
    blue = frames[10][top - 2 : top + 3, left + 40 : left + 60].astype(int)
    assert (blue[..., 2] - blue[..., 0]).max() > 60  # the box
    assert (tmp_path / "o/film_expressions.png").stat().st_size > 10_000
    assert run(file, "--out", tmp_path / "every", "--every", 3, "--no_draw") == 0
    assert {int(row["frame"]) % 3 for row in table(tmp_path / "every")} == {0}
    assert not (tmp_path / "every/film_faces.mp4").exists()


def test_an_animated_gif_is_a_video_with_its_own_times(constant_runtime, tmp_path, moving):
    frames = [Image.fromarray(frame) for frame in moving[4:10]]
    pauses = [100, 100, 500, 100, 1000, 100]  # milliseconds
    file = tmp_path / "film.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=pauses)
    frames[0].save(tmp_path / "still.gif")
    assert is_video(file)
    assert not is_video(tmp_path / "still.gif")
    times = pytest.approx([0, 0.1, 0.2, 0.7, 0.8, 1.8])
    video = VideoFile(file)
    assert [frame.time for frame in video.frames()] == times
    assert not video.fault
    assert run(file, tmp_path / "still.gif", "--out", tmp_path / "o", "--every", 2) == 0
    rows = [row for row in table(tmp_path / "o") if row["face"] == "0"]
    expected = [
        ("still.gif", "", ""),
        *(("film.gif", *values) for values in zip("024", ["0.0", "0.2", "0.8"])),
    ]
    assert [(Path(row["file"]).name, row["frame"], row["time"]) for row in rows] == expected


def test_times_of_a_variable_frame_rate_are_the_file_s(tmp_path, moving):
    times = [0, 40, 90, 300, 310, 1500]  # milliseconds
    for suffix in ("mp4", "mkv"):
        file = tmp_path / f"film.{suffix}"
        with av.open(file, "w") as container:
            stream = container.add_stream("libx264", 25)
            stream.height, stream.width = moving[0].shape[:2]
            stream.codec_context.time_base = Fraction(1, 1000)
            for time, image in zip(times, moving):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        video = VideoFile(file)
        seconds = [frame.time for frame in video.frames()]
        assert seconds == pytest.approx(np.array(times) / 1000, abs=2e-3)
        assert not video.fault


def with_stamps(path, frame, stamps):
    """Return a video of 25 frames per second with other times, in milliseconds."""
    video = VideoFile(write_video(path, [frame] * len(stamps), rate=25))
    decode = video._decode
    video._decode = lambda: ((t / 1000, frame) for t, (_, frame) in zip(stamps, decode()))
    return video


@pytest.mark.parametrize(
    ("stamps", "every", "seconds"),
    [
        ([0, 0, 0, 0], 1, [0, 0.04, 0.08, 0.12]),  # the file has no times
        ([float("nan")] * 3, 1, [0, 0.04, 0.08]),
        ([9000, 9050, 9150], 1, [0, 0.05, 0.15]),  # the first time need not be 0
        ([0, 50, 9e6, 9e6 + 50, 20, 70], 1, [0, 0.05, 0.09, 0.14, 0.18, 0.23]),  # the clock jumps
        ([0, 40e3, 80e3, 120e3, 160e3], 2, [0, 80, 160]),
    ],
)
def test_times_where_the_clock_of_a_video_is_missing_or_jumps(
    tmp_path, moving, stamps, every, seconds
):
    video = with_stamps(tmp_path / "film.mp4", moving[0], stamps)
    assert [frame.time for frame in video.frames(every)] == pytest.approx(seconds)


def test_a_pause_may_be_as_long_as_the_video(tmp_path, moving):
    video = with_stamps(tmp_path / "film.mp4", moving[0], [0, 40, 80e3, 80040])
    video.rate, video.num_frames = 0.05, 4
    assert [frame.time for frame in video.frames()] == pytest.approx([0, 0.04, 80, 80.04])


def test_a_video_without_a_constant_rate_is_not_reported_as_damaged(tmp_path, moving):
    for last, is_damaged in ((2340, False), (1500, True)):
        stamps = np.linspace(0, last, 20)
        video = with_stamps(tmp_path / f"{last}.mp4", moving[0], stamps)
        video.num_frames = 60  # 2.4 seconds at 25 frames per second
        assert len(list(video.frames())) == 20
        assert bool(video.fault) == is_damaged


def rotate_header(file, degrees):
    """Set the rotation in the header of an MP4 file, as phones do."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    content = bytearray(file.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = matrix
    file.write_bytes(content)


@pytest.mark.parametrize(("degrees", "quarters"), [(90, -1), (180, 2), (270, 1)])
def test_a_rotated_video_of_a_phone_is_upright(tmp_path, moving, degrees, quarters):
    file = write_video(tmp_path / "film.mp4", moving[4:8])
    plain = frames_of(file)[0]
    rotate_header(file, degrees)
    np.testing.assert_array_equal(frames_of(file)[0], np.rot90(plain, quarters))
    _, image = cv2.VideoCapture(str(file)).read()  # OpenCV rotates too
    assert image.shape == frames_of(file)[0].shape
    assert np.abs(image[..., ::-1].astype(int) - frames_of(file)[0]).mean() < 10


@pytest.mark.parametrize(
    "name", ["img_%02d.mp4", "12:30.mp4", "http:film.mp4", "a*[b].mp4", "-.mp4"]
)
def test_a_name_is_neither_a_pattern_nor_a_protocol(tmp_path, moving, name):
    write_video(tmp_path / "film.mp4", moving).rename(tmp_path / name)
    assert len(frames_of(tmp_path / name)) == 24
    with closing(VideoWriter(tmp_path / f"out_{name}", 10, (480, 360))) as writer:
        writer.write(moving[0])
    assert not writer.fault
    assert len(frames_of(tmp_path / f"out_{name}")) == 1


def test_a_playlist_cannot_open_other_files(tmp_path, moving):
    film = write_video(tmp_path / "film.mp4", moving)
    (tmp_path / "a.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{film}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "b.mp4").write_text(f"ffconcat version 1.0\nfile '{film.name}'\n")
    for name in "ab":
        with pytest.raises(DataError, match="cannot be opened as a video"):
            VideoFile(tmp_path / f"{name}.mp4")


# Damaged files


def test_a_truncated_video_keeps_the_predictions_of_its_frames(
    constant_runtime, tmp_path, capsys, moving, astronaut
):
    file = write_video(tmp_path / "film.avi", moving, "MJPG")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    (tmp_path / "none.mp4").write_bytes(b"no video")
    image = save(tmp_path / "a.png", astronaut)
    assert run(tmp_path / "none.mp4", file, image, "--out", tmp_path / "o") == 3
    errors = capsys.readouterr().err
    assert "none.mp4 cannot be opened" in errors
    assert "film.avi ends after" in errors
    files = {Path(row["file"]).name for row in table(tmp_path / "o")}
    assert files == {"film.avi", "a.png"}
    json.loads((tmp_path / "o/predictions.json").read_text())
    assert frames_of(tmp_path / "o/film_faces.mp4")


@pytest.mark.parametrize(
    ("suffix", "code"), [(".mp4", "mp4v"), (".avi", "MJPG"), (".mkv", "MJPG"), (".mp4", "avc1")]
)
def test_a_damaged_frame_does_not_end_a_video(tmp_path, moving, suffix, code):
    file = tmp_path / f"film{suffix}"
    if code == "avc1":
        with closing(VideoWriter(file, 10, (480, 360))) as writer:
            for frame in moving:
                writer.write(frame)
    else:
        write_video(file, moving, code)
    content = bytearray(file.read_bytes())
    start = int(0.7 * len(content))
    content[start : start + 2000] = bytes(2000)
    file.write_bytes(content)
    numbers = list(frames_of(file))
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 15


def test_a_file_with_fewer_frames_than_its_header_says_is_reported(tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    video = VideoFile(file)
    assert len(list(video.frames())) == 24
    assert not video.fault
    video.num_frames = 100
    assert "ends after 24 of its 100 frames" in video.fault


def test_the_sound_of_a_matroska_file_may_be_longer(tmp_path, moving):
    file = tmp_path / "film.mkv"
    with av.open(file, "w") as container:
        stream, sound = container.add_stream("mpeg4", 10), container.add_stream("aac", 8000)
        container.mux(encode(stream, moving))
        samples = np.zeros((1, 8000 * 8), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    video = VideoFile(file)
    assert video.num_frames == 24
    assert len(list(video.frames())) == 24
    assert not video.fault


def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path, moving):
    file = tmp_path / "film.mp4"
    with av.open(file, "w") as container:
        container.mux(encode(container.add_stream("libx264", 10), moving))
    content = bytearray(file.read_bytes())
    start = content.index(b"elst") + 12
    content[start : start + 4] = struct.pack(">i", 1000)  # milliseconds
    file.write_bytes(content)
    video = VideoFile(file)
    assert len(list(video.frames())) in range(10, 13)
    assert not video.fault


def test_pixels_become_square(tmp_path, moving):
    file = tmp_path / "film.mp4"
    with av.open(file, "w") as container:
        stream = container.add_stream("mpeg4", 10)
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(encode(stream, moving[:3]))
    image = frames_of(file)[0]
    assert image.shape == (360, 640, 3)
    expected = cv2.resize(moving[0], (640, 360))
    assert np.abs(image.astype(int) - expected).mean() < 10


def test_an_unknown_codec_is_reported(constant_runtime, tmp_path, moving, capsys):
    file = write_video(tmp_path / "film.avi", moving, "MJPG")
    file.write_bytes(file.read_bytes().replace(b"MJPG", b"ZZZZ"))
    video = VideoFile(file)
    assert list(video.frames()) == []
    assert "no frame can be decoded; the file is damaged or its codec is not" in video.fault
    assert run(file, "--out", tmp_path / "o") == 3
    assert "no frame can be decoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"no video", b"\x1a\x45\xdf\xa3\x9f", b"RIFF\0\0\0\0AVI "]
)
def test_a_file_that_is_not_a_video_is_refused(tmp_path, content):
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"film\.mp4 cannot be opened as a video"):
        VideoFile(tmp_path / "film.mp4")


# Writing


def test_annotated_videos_play_in_browsers(tmp_path, moving):
    with closing(VideoWriter(tmp_path / "film.mp4", 10, (480, 360))) as writer:
        for frame in moving:
            writer.write(frame)
    with av.open(tmp_path / "film.mp4") as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    content = (tmp_path / "film.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is loaded
    for image, frame in zip(moving, frames_of(tmp_path / "film.mp4").values(), strict=True):
        assert np.abs(image.astype(int) - frame).mean() < 6


def test_without_an_encoder_of_h264_mpeg4_is_written(tmp_path, moving, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    with closing(VideoWriter(tmp_path / "film.mp4", 10, (480, 360))) as writer:
        for frame in moving:
            writer.write(frame)
    with av.open(tmp_path / "film.mp4") as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert len(frames_of(tmp_path / "film.mp4")) == 24


@pytest.mark.parametrize("size", [(1, 1), (63, 65), (64, 33)])
def test_odd_sizes_can_be_written(tmp_path, size):
    width, height = size
    image = np.full((height, width, 3), 200, np.uint8)
    with closing(VideoWriter(tmp_path / "film.mp4", 10, size)) as writer:
        writer.write(image)
    (frame,) = frames_of(tmp_path / "film.mp4").values()
    assert frame.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(frame.astype(int) - 200).max() < 10


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("rate", [1e-4, 200 / 3, 999 / 7, 999.4, 29.97])
def test_any_rate_can_be_written(tmp_path, rate, encoder, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {encoder})
    with closing(VideoWriter(tmp_path / "a.mp4", rate, (64, 64))) as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    assert writer.rate == pytest.approx(max(rate, 0.01), rel=1e-3)
    assert not writer.fault
    assert VideoFile(tmp_path / "a.mp4").rate == pytest.approx(writer.rate, rel=1e-2)
    assert len(frames_of(tmp_path / "a.mp4")) == 3


@pytest.mark.parametrize("limit", [20_000, 1_000_000])
def test_a_full_disk_is_reported_and_the_records_are_kept(
    constant_runtime, tmp_path, moving, capsys, monkeypatch, limit
):
    file = write_video(tmp_path / "film.mp4", moving)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write, noise = VideoWriter.write, np.random.default_rng(0)

    def write_noise(self, image, position):  # compresses badly
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            write(self, noise.integers(0, 256, image.shape, np.uint8), position)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(VideoWriter, "write", write_noise)
    close = VideoWriter.close

    def limited_close(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            close(self)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(VideoWriter, "close", limited_close)
    assert run(file, "--out", tmp_path / "o") == 3
    assert "film_faces.mp4 could not be finished and was removed" in capsys.readouterr().err
    assert not (tmp_path / "o/film_faces.mp4").exists()
    assert len(table(tmp_path / "o")) >= 20


def test_a_video_that_cannot_be_written_is_predicted_all_the_same(
    constant_runtime, tmp_path, capsys, moving
):
    file = tmp_path / "wide.gif"
    frames = [Image.fromarray(np.resize(frame, (32, 17_000, 3))) for frame in moving[4:7]]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=100)
    other = write_video(tmp_path / "film.mp4", moving[:8])
    assert run(file, other, "--cropped", "--out", tmp_path / "12:30") == 3
    errors = capsys.readouterr().err
    assert "wide_faces.mp4 cannot be written (17000 x 32 pixels" in errors
    assert errors.count("warning: ") == 1
    annotated = [row["annotated"] for row in table(tmp_path / "12:30")]
    assert annotated == [""] * 3 + ["film_faces.mp4"] * 8


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(DataError, match="--no_draw"):
        VideoWriter(tmp_path / "no/folder/a.mp4", 10, (64, 64))


# The pipeline


def test_detection_continues_while_the_network_predicts(constant_runtime, tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    detect, predict, detected = FacePredictor.detect, FacePredictor.predict, []
    all_detected = threading.Event()

    def count_detection(self, image):
        detected.append(1)
        if len(detected) == 24:  # the first batch has 16
            all_detected.set()
        return detect(self, image)

    def predict_last(self, crops):
        assert all_detected.wait(20)
        return predict(self, crops)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(FacePredictor, "detect", count_detection)
        context.setattr(FacePredictor, "predict", predict_last)
        assert run(file, "--out", tmp_path / "o") == 0


def test_an_interrupt_keeps_earlier_records(constant_runtime, tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    predict, calls = FacePredictor.predict, []

    def interrupted(self, crops):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(self, crops)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(FacePredictor, "predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(file, "--out", tmp_path / "o")
    records = json.loads((tmp_path / "o/predictions.json").read_text())
    assert len(records) == len(table(tmp_path / "o")) > 5


# Cameras


class FakeCapture:
    """A camera that claims 30 frames per second; reading a frame takes 0.2 seconds."""

    def __init__(self, _):
        self.left = 12

    def isOpened(self):  # noqa: N802  (OpenCV's name)
        return True

    def get(self, prop):
        return 30.0 if prop == cv2.CAP_PROP_FPS else 0.0

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, np.zeros((64, 64, 3), np.uint8)

    def release(self):
        pass


def test_the_times_of_a_camera_are_those_of_the_clock(monkeypatch, tmp_path):
    clock = iter(np.arange(100) / 5)
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr("inference.video.time.monotonic", lambda: float(next(clock)))
    frames = list(Camera(0).frames(every=2))
    assert [frame.number for frame in frames] == [6, 12, 18, 24, 30, 36]
    assert [frame.time for frame in frames] == pytest.approx(np.arange(1, 7) / 5)
    monkeypatch.undo()
    with closing(VideoWriter(tmp_path / "a.mp4", 10, (64, 64))) as writer:
        for position in (0, 1, 1, 6):  # of two images for a frame, the first is written
            writer.write(np.full((64, 64, 3), 40 * position, np.uint8), position)
    levels = [round(frame.mean() / 40) for frame in frames_of(tmp_path / "a.mp4").values()]
    assert levels == [0, 1, 6, 6, 6, 6, 6]


def test_a_camera_is_recorded_until_it_ends(constant_runtime, monkeypatch, tmp_path, capsys):
    clock = iter(np.arange(100) / 5)
    monkeypatch.setattr("inference.video.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    assert run(0, "--cropped", "--out", tmp_path / "o") == 0
    assert "camera0: 12 frames, 1 face; happy 100 % of the time" in capsys.readouterr().out
    assert {row["file"] for row in table(tmp_path / "o")} == {"0"}
    assert len(frames_of(tmp_path / "o/camera0_faces.mp4")) >= 12


# Tracking


def test_smoothing_by_hand():
    tracker, box = Tracker(smooth=1.0), np.array([[0, 0, 10, 10.0]])
    first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    (track,) = tracker.update(box, first, 0.0)
    (same,) = tracker.update(box + 1, second, 1.0)
    assert same is track
    np.testing.assert_allclose(track.probabilities, [np.exp(-1), 1 - np.exp(-1)])
    plain = Tracker(smooth=0)
    plain.update(box, first, 0.0)
    np.testing.assert_array_equal(plain.update(box, second, 0.1)[0].probabilities, second[0])


def test_a_frame_is_shown_until_the_next_one():
    tracker, box = Tracker(smooth=0), np.array([[0, 0, 10, 10.0]])
    first, second = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    tracker.update(box, first, 0.0)
    tracker.update(box, second, 0.6)
    tracker.update(box[:0], first[:0], 0.8)  # it is missing in two frames
    tracker.update(box[:0], first[:0], 1.2)
    tracker.update(box, first, 1.4)
    tracker.update(box[:0], first[:0], 1.6)
    (track,) = tracker.tracks
    edges, probabilities = track.curve()
    np.testing.assert_allclose(edges, np.arange(9) * STEP)
    np.testing.assert_array_equal(probabilities[:, 0], [1, 1, 1, 0, *[np.nan] * 3, 1])


def test_each_face_keeps_its_number():
    tracker = Tracker(smooth=0.3)
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    probabilities = np.full((2, 2), 0.5)
    first = tracker.update(boxes, probabilities, 0.0)
    crossed = tracker.update(boxes[::-1] + 1, probabilities, 0.1)
    assert [track.number for track in first] == [0, 1]
    assert [track.number for track in crossed] == [1, 0]
    assert tracker.update(boxes[:0], probabilities[:0], 0.2) == []
    assert tracker.update(boxes[:1], probabilities[:1], 0.3)[0].number == 0  # within MAX_GAP
    assert tracker.update(boxes[1:], probabilities[1:], 5.0)[0].number == 2  # too late


def test_a_track_is_confirmed_after_three_frames():
    box, probabilities = np.array([[0, 0, 10, 10.0]]), np.array([[1.0, 0.0]])
    tracker = Tracker(0.3)
    (face,) = tracker.update(box, probabilities, 0.0)
    assert not tracker.is_confirmed(face)
    assert tracker.longest() == []
    both = np.concatenate([box, box + 50])
    _, patch = tracker.update(both, np.repeat(probabilities, 2, 0), 0.1)
    assert not tracker.is_confirmed(patch)
    tracker.update(both, np.repeat(probabilities, 2, 0), 0.2)
    assert not tracker.is_confirmed(patch)
    assert tracker.longest() == [face]
    tracker.update(both, np.repeat(probabilities, 2, 0), 0.3)
    assert tracker.longest() == [face, patch]


def test_a_face_keeps_its_number_at_a_low_frame_rate():
    box, probabilities = np.array([[0, 0, 10, 10.0]]), np.array([[1.0, 0.0]])
    tracker = Tracker(0.3)
    assert [tracker.update(box, probabilities, t)[0].number for t in (0.0, 5.0, 10.0)] == [0, 0, 0]
    tracker.update(box[:0], probabilities[:0], 15.0)
    assert tracker.update(box, probabilities, 20.0)[0].number == 0  # it was missing in one frame
    for time in (25.0, 30.0):
        tracker.update(box[:0], probabilities[:0], time)
    assert tracker.update(box, probabilities, 35.0)[0].number == 1


def test_the_steps_of_a_long_video_are_bounded():
    tracker, box = Tracker(smooth=0), np.array([[0, 0, 10, 10.0]])
    for hour in range(100):
        tracker.update(box, np.eye(2)[[int(hour >= 50)]], 3600.0 * hour)
    (track,) = tracker.longest(3)
    edges, probabilities = track.curve()
    assert len(probabilities) <= MAX_STEPS + 1
    np.testing.assert_array_equal(probabilities[:, 1], edges[1:] > 50 * 3600)


def test_the_plot_has_gaps_where_a_face_is_missing():
    probabilities = np.full((4, 7), 1 / 7)
    probabilities[2] = np.nan
    figure = plot_expressions_over_time(
        {"face 0": (np.arange(5) * STEP, probabilities)}, EMOTIONS, "film"
    )
    (axes,) = figure.axes
    assert len(axes.collections) == 7
    for band in axes.collections:
        spans = [path.get_extents() for path in band.get_paths()]
        assert [(round(s.x0, 9), round(s.x1, 9)) for s in spans] == [(0, 0.4), (0.6, 0.8)]


@pytest.mark.parametrize(("rate", "every"), [(25, 1), (25, 5), (25, 8), (30, 30), (10, 2)])
def test_the_plot_has_no_gap_where_a_face_stays(rate, every):
    tracker = Tracker(0.3)
    for number in range(0, 10 * rate, every):
        tracker.update(np.array([[0, 0, 9.0, 9.0]]), np.eye(7)[:1], number / rate)
    (track,) = tracker.tracks
    assert not np.isnan(track.curve()[1]).any()
