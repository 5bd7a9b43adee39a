"""predict.py on videos and cameras: times, faults, faces followed over time."""

import json
import threading
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from photos import run, save, table
from PIL import Image

from data.dataset import EMOTIONS
from inference.inputs import is_video
from inference.pipeline import MOST_BYTES, OrderedExecutor
from inference.predictor import FacePredictor
from inference.tracking import MOST, STEP, Tracker
from inference.video import Video, VideoWriter
from utils.errors import DataError
from utils.plots import plot_expressions_over_time

# Videos


def write_video(path, frames, code="mp4v", rate=10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), rate, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def frames_of(video):
    return {number: frame for number, _, frame in video.frames()}


@pytest.fixture(scope="module")
def moving(both):
    """24 frames in which the astronaut comes in, wanders to the left, and goes."""
    blank = np.full((360, 480, 3), 100, np.uint8)
    return [blank] * 2 + [both[30:390, 4 * i : 480 + 4 * i] for i in range(20)] + [blank] * 2


def test_a_video(echo, tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    assert run(file, "--out", tmp_path / "o") == 0
    rows = [row for row in table(tmp_path / "o") if row["face"] == "0"]
    assert [int(row["frame"]) for row in rows] == list(range(2, 22))
    assert [float(row["time"]) for row in rows] == pytest.approx(np.arange(2, 22) / 10)
    assert {row["annotated"] for row in rows} == {"film_faces.mp4"}
    lefts = [float(row["left"]) for row in rows]
    assert lefts[0] - lefts[-1] == pytest.approx(76, abs=15)
    video = Video(tmp_path / "o/film_faces.mp4")
    assert (video.rate, video.frame_num) == (10, 24)
    frames = frames_of(video)
    assert frames[10].shape == (360, 480, 3)
    left, top = (int(float(rows[8][k])) for k in ("left", "top"))
    blue = frames[10][top - 2 : top + 3, left + 40 : left + 60].astype(int)
    assert (blue[..., 2] - blue[..., 0]).max() > 60  # the box
    assert (tmp_path / "o/film_expressions.png").stat().st_size > 10_000
    assert run(file, "--out", tmp_path / "every", "--every", 3, "--no_draw") == 0
    assert {int(row["frame"]) % 3 for row in table(tmp_path / "every")} == {0}
    assert not (tmp_path / "every/film_faces.mp4").exists()


def test_a_gif_that_moves_is_a_film_and_its_times_are_its_own(echo, tmp_path, moving):
    frames = [Image.fromarray(frame) for frame in moving[4:10]]
    pauses = [100, 100, 500, 100, 1000, 100]  # milliseconds
    file = tmp_path / "film.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], format_duration=pauses)
    frames[0].save(tmp_path / "still.gif")
    assert is_video(file)
    assert not is_video(tmp_path / "still.gif")
    times = pytest.approx([0, 0.1, 0.2, 0.7, 0.8, 1.8])
    video = Video(file)
    assert [seconds for _, seconds, _ in video.frames()] == times
    assert not video.fault
    assert run(file, tmp_path / "still.gif", "--out", tmp_path / "o", "--every", 2) == 0
    rows = [row for row in table(tmp_path / "o") if row["face"] == "0"]
    expected = [
        ("still.gif", "", ""),
        *(("film.gif", *each) for each in zip("024", ["0.0", "0.2", "0.8"])),
    ]
    assert [(Path(row["file"]).name, row["frame"], row["time"]) for row in rows] == expected


def stamped(path, frame, stamps):
    """Return a video of 25 frames a second that tells other times, in milliseconds."""
    video = Video(write_video(path, [frame] * len(stamps), rate=25))
    told, capture = iter(stamps), video._capture

    class Told:
        def __getattr__(self, name):
            return getattr(capture, name)

        def get(self, what):
            return next(told) if what == cv2.CAP_PROP_POS_MSEC else capture.get(what)

    video._capture = Told()
    return video


@pytest.mark.parametrize(
    ("stamps", "every", "seconds"),
    [
        ([0, 0, 0, 0], 1, [0, 0.04, 0.08, 0.12]),  # the file tells none
        ([float("nan")] * 3, 1, [0, 0.04, 0.08]),
        ([9000, 9050, 9150], 1, [0, 0.05, 0.15]),  # it need not begin at 0
        ([0, 50, 9e6, 9e6 + 50, 20, 70], 1, [0, 0.05, 0.09, 0.14, 0.18, 0.23]),  # set anew
        ([0, 40e3, 80e3, 120e3, 160e3], 2, [0, 80, 160]),
    ],
)
def test_times_where_a_film_s_clock_is_none_or_jumps(tmp_path, moving, stamps, every, seconds):
    video = stamped(tmp_path / "film.mp4", moving[0], stamps)
    assert [when for _, when, _ in video.frames(every)] == pytest.approx(seconds)


def test_a_film_without_a_constant_rate_is_not_called_damaged(tmp_path, moving):
    for last, damaged in ((2340, False), (1500, True)):
        stamps = np.linspace(0, last, 20)
        video = stamped(tmp_path / f"{last}.mp4", moving[0], stamps)
        video.frame_num = 60  # as FFmpeg reckons of 2.4 seconds
        assert len(list(video.frames())) == 20
        assert bool(video.fault) == damaged


def test_a_film_that_cannot_be_drawn_is_read_all_the_same(echo, tmp_path, capsys, moving):
    file = tmp_path / "thin.gif"
    frames = [Image.fromarray(frame[:, :1]) for frame in moving[4:7]]
    frames[0].save(file, save_all=True, append_images=frames[1:], format_duration=100)
    other = write_video(tmp_path / "film.mp4", moving[:8])
    assert run(file, other, "--cropped", "--out", tmp_path / "12:30") == 3
    told = capsys.readouterr().err
    assert "thin_faces.mp4 cannot be written (1 x 360 pixels" in told
    assert told.count("warning: ") == 1
    drawn = [row["annotated"] for row in table(tmp_path / "12:30")]
    assert drawn == [""] * 3 + ["film_faces.mp4"] * 8


@pytest.mark.parametrize("rate", [1e-4, 200 / 3, 999 / 7, 999.4, 29.97])
def test_films_of_any_rate_can_be_written(tmp_path, rate):
    with closing(VideoWriter(tmp_path / "a.mp4", rate)) as writer:
        for _ in range(3):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    assert writer.rate == pytest.approx(max(rate, 0.01), rel=1e-3)
    assert not writer.fault
    assert Video(tmp_path / "a.mp4").rate == pytest.approx(writer.rate, rel=1e-2)
    writer.write(np.zeros((64, 64, 3), np.uint8))  # a frame that was still drawn at Ctrl-C
    assert len(frames_of(Video(tmp_path / "a.mp4"))) == 3
    (tmp_path / "a.mp4").write_bytes(b"cut off")
    assert "free disk space" in writer.fault


def test_ctrl_c_leaves_nothing_at_work_behind_the_block():
    done, begun, free = [], threading.Event(), threading.Event()

    def work(number):
        begun.set()
        free.wait(20)
        done.append(number)

    def draw():
        with OrderedExecutor() as order:
            for number in range(4):
                order.submit(1, work, number)
            begun.wait(20)
            shutdown = order._pool.shutdown

            def interrupted(**more):
                if not more:
                    raise KeyboardInterrupt
                shutdown(wait=False, **more)
                free.set()
                shutdown(**more)

            order._pool.shutdown = interrupted

    with pytest.raises(KeyboardInterrupt):
        draw()
    assert done == [0]


@pytest.mark.parametrize(("suffix", "code"), [(".mp4", "mp4v"), (".avi", "MJPG")])
def test_a_video_is_known_without_its_suffix(tmp_path, moving, suffix, code):
    file = write_video(tmp_path / f"film{suffix}", moving, code).rename(tmp_path / "film")
    assert is_video(file)
    assert frames_of(Video(file))


@pytest.mark.parametrize(
    ("name", "head", "video"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic", False),
        ("a.avif", b"\0\0\0\x1cftypavif", False),
        ("a.3gp", b"", True),
        ("a", b"\0\0\0\x18ftyp3gp4", True),
        ("a", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81", True),
        ("a", b"RIFF\0\0\0\0WEBPVP8 ", False),
        ("a", b"\xff\xd8\xff\xe0", False),
        ("a.ts", 2 * (b"G" + bytes(187)), True),
        ("a.ts", b"G" + bytes(300), False),
        ("a.jpg", b"\0\0\0\x18ftypisom", False),
        ("a", b"", False),
    ],
)
def test_first_bytes_tell_where_the_name_does_not(tmp_path, name, head, video):
    (tmp_path / name).write_bytes(head)
    assert is_video(tmp_path / name) == video
    assert not is_video(tmp_path / "none")
    assert not is_video(tmp_path)


def test_a_video_that_stops_early_keeps_what_it_gave(echo, tmp_path, capsys, moving, astronaut):
    file = write_video(tmp_path / "film.avi", moving, "MJPG")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    (tmp_path / "none.mp4").write_bytes(b"no video")
    picture = save(tmp_path / "a.png", astronaut)
    assert run(tmp_path / "none.mp4", file, picture, "--out", tmp_path / "o") == 3
    told = capsys.readouterr().err
    assert "none.mp4 cannot be opened" in told
    assert "film.avi ends after" in told
    files = {Path(row["file"]).name for row in table(tmp_path / "o")}
    assert files == {"film.avi", "a.png"}
    json.loads((tmp_path / "o/predictions.json").read_text())
    assert frames_of(Video(tmp_path / "o/film_faces.mp4"))


def test_a_file_that_promises_more_frames_is_told(tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    video = Video(file)
    assert len(list(video.frames())) == 24
    assert not video.fault
    video.frame_num = 100
    assert "ends after 24 of its 100 frames" in video.fault


def test_a_pause_may_be_as_long_as_the_film(tmp_path, moving):
    video = stamped(tmp_path / "film.mp4", moving[0], [0, 40, 80e3, 80040])
    video.rate, video.frame_num = 0.05, 4
    assert [when for _, when, _ in video.frames()] == pytest.approx([0, 0.04, 80, 80.04])


def test_the_sound_of_a_matroska_film_may_last_longer(tmp_path, moving):
    video = Video(write_video(tmp_path / "film.mkv", moving, "MJPG"))
    list(video.frames())
    for seconds, told in ((0, False), (0.9, False), (2.5, True)):
        video.frame_num = 24 + round(seconds * video.rate)
        assert bool(video.fault) == told


def test_a_film_of_an_unknown_codec_is_told(tmp_path, moving):
    video = Video(write_video(tmp_path / "film.mp4", moving))
    video._capture.release()  # so that it gives no frame
    assert list(video.frames()) == []
    assert "no frame can be decoded; it is damaged, or OpenCV does not know" in video.fault


def test_drawings_wait_only_while_there_is_room():
    free, done = threading.Event(), []

    def draw(number):
        free.wait(20)
        done.append(number)

    def submit(order, size):
        order.submit(size, draw, size)
        done.append("submitted")

    with OrderedExecutor() as order:
        order.submit(MOST_BYTES + 1, draw, 0)  # one may be as large as it likes
        waiting = threading.Thread(target=submit, args=(order, 1))
        waiting.start()
        waiting.join(0.1)
        assert done == []
        free.set()
    waiting.join(20)
    assert done.index("submitted") > done.index(0)


def test_faces_are_sought_while_the_network_reads(echo, tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    find, read, sought, map_ahead = FacePredictor.find, FacePredictor.read, [], threading.Event()

    def finding(self, image, detail):
        sought.append(1)
        if len(sought) == 24:  # the network has the first 16
            map_ahead.set()
        return find(self, image, detail)

    def reading(self, cuts):
        assert map_ahead.wait(20)
        return read(self, cuts)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(FacePredictor, "find", finding)
        context.setattr(FacePredictor, "read", reading)
        assert run(file, "--out", tmp_path / "o") == 0


def test_an_interrupt_keeps_what_was_found(echo, tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    read, calls = FacePredictor.read, []

    def stopping(self, cuts):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(self, cuts)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(FacePredictor, "read", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(file, "--out", tmp_path / "o")
    records = json.loads((tmp_path / "o/predictions.json").read_text())
    assert len(records) == len(table(tmp_path / "o")) > 5


def test_a_writer_that_cannot_write_says_so(tmp_path):
    with pytest.raises(DataError, match="--no_draw"):
        VideoWriter(tmp_path / "no/folder/a.mp4", 10).write(np.zeros((64, 64, 3), np.uint8))


class Camera:
    """Films 30 frames a second, as it says; every read takes a fifth of one."""

    def __init__(self, _):
        self.left = 12

    def isOpened(self):  # noqa: N802  (OpenCV's name)
        return True

    def get(self, what):
        return 30.0 if what == cv2.CAP_PROP_FPS else 0.0

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def retrieve(self):
        return True, np.zeros((64, 64, 3), np.uint8)

    def release(self):
        pass


def test_a_camera_goes_by_the_clock(monkeypatch, tmp_path):
    clock = iter(np.arange(100) / 5)
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr("inference.video.time.monotonic", lambda: float(next(clock)))
    times = [(number, seconds) for number, seconds, _ in Video(0).frames(every=2)]
    assert [number for number, _ in times] == [6, 12, 18, 24, 30, 36]
    assert [seconds for _, seconds in times] == pytest.approx(np.arange(1, 7) / 5)
    monkeypatch.undo()
    with closing(VideoWriter(tmp_path / "a.mp4", 10)) as writer:
        for place in (0, 1, 1, 6):
            writer.write(np.full((64, 64, 3), 40 * place, np.uint8), place)
    levels = [round(frame.mean() / 40) for _, _, frame in Video(tmp_path / "a.mp4").frames()]
    assert levels == [0, 1, 1, 6, 6, 6, 6]


# Faces over time


def test_smoothing_by_hand():
    tracker, box = Tracker(smooth=1.0), np.array([[0, 0, 10, 10.0]])
    one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    (track,) = tracker.follow(box, one, 0.0)
    (same,) = tracker.follow(box + 1, other, 1.0)
    assert same is track
    np.testing.assert_allclose(track.probabilities, [np.exp(-1), 1 - np.exp(-1)])
    plain = Tracker(smooth=0)
    plain.follow(box, one, 0.0)
    np.testing.assert_array_equal(plain.follow(box, other, 0.1)[0].probabilities, other[0])


def test_a_frame_lasts_until_the_next_one():
    tracker, box = Tracker(smooth=0, step=0.25), np.array([[0, 0, 10, 10.0]])
    reads = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    for time, read in ((0.0, reads[0]), (1.0, reads[1])):
        tracker.follow(box, read, time)
    tracker.follow(box[:0], reads[0][:0], 1.25)  # it is away for one frame
    tracker.follow(box, reads[0], 2.0)
    (track,) = tracker.tracks
    assert sorted(track.past) == [0, 1, 2, 3, 4, 8]
    assert [track.past[i][1].tolist() for i in (0, 3, 4)] == [[1, 0], [1, 0], [0, 1]]


def test_each_face_keeps_its_number():
    tracker = Tracker(smooth=0.3)
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], float)
    reads = np.full((2, 2), 0.5)
    first = tracker.follow(boxes, reads, 0.0)
    crossed = tracker.follow(boxes[::-1] + 1, reads, 0.1)
    assert [track.number for track in first] == [0, 1]
    assert [track.number for track in crossed] == [1, 0]
    assert tracker.follow(boxes[:0], reads[:0], 0.2) == []
    assert tracker.follow(boxes[:1], reads[:1], 0.3)[0].number == 0  # back soon enough
    assert tracker.follow(boxes[1:], reads[1:], 5.0)[0].number == 2  # too late


def test_a_face_keeps_its_number_however_seldom_it_is_looked_at():
    box, read = np.array([[0, 0, 10, 10.0]]), np.array([[1.0, 0.0]])
    tracker = Tracker(0.3)
    assert [tracker.follow(box, read, t)[0].number for t in (0.0, 5.0, 10.0)] == [0, 0, 0]
    tracker.follow(box[:0], read[:0], 15.0)
    assert tracker.follow(box, read, 20.0)[0].number == 0  # it was missed once
    for time in (25.0, 30.0):
        tracker.follow(box[:0], read[:0], time)
    assert tracker.follow(box, read, 35.0)[0].number == 1


def test_a_long_video_takes_no_more_memory():
    tracker = Tracker(smooth=0.3)
    for i in range(10 * MOST):  # a new face every ten seconds, of which one stays longer
        for k in range(1 + 20 * (i == 7)):
            tracker.follow(np.array([[i, 0, i + 1.0, 1.0]]), np.eye(2)[:1], 10.0 * i + k * STEP)
    assert len(tracker.tracks) <= MOST
    assert len(tracker.longest(1)[0].past) > 1


def test_the_plot_leaves_gaps_where_a_face_is_away():
    shares = np.full((4, 7), 1 / 7)
    shares[2] = np.nan
    figure = plot_expressions_over_time({"face 0": (np.arange(5) * STEP, shares)}, EMOTIONS, "film")
    (axes,) = figure.axes
    assert len(axes.collections) == 7
    for band in axes.collections:
        spans = [path.get_extents() for path in band.get_paths()]
        assert [(round(s.x0, 9), round(s.x1, 9)) for s in spans] == [(0, 0.4), (0.6, 0.8)]


@pytest.mark.parametrize(("rate", "every"), [(25, 1), (25, 5), (25, 8), (30, 30), (10, 2)])
def test_the_plot_has_no_gap_where_a_face_stays(rate, every):
    tracker = Tracker(0.3, max(STEP, every / rate))
    for number in range(0, 10 * rate, every):
        tracker.follow(np.array([[0, 0, 9.0, 9.0]]), np.eye(7)[:1], number / rate)
    (track,) = tracker.tracks
    assert sorted(track.past) == list(range(max(track.past) + 1))
