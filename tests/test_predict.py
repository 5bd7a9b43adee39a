"""predict.py on real photographs, pictures of every kind, videos, and as a library."""

import csv
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from copy import copy
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import cbook, rcParams
from matplotlib.font_manager import findfont
from PIL import Image
from skimage import data as photographs

import predict
from data.detect import cut, find_faces, squares
from data.faces import EMOTIONS
from data.folders import read_image
from data.inputs import is_video
from data.sample import synthetic_faces
from models import inference
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.network import Architecture, FERNet
from models.runtime import Readings
from predictor import Face, FacePredictor
from utils import records
from utils.drawing import BLUE
from utils.errors import DataError, OptionError, ProjectError, RunError, WeightsError
from utils.figures import confusion_matrix, expressions_over_time
from utils.pipeline import InOrder
from utils.records import Records
from utils.tracks import MOST, STEP, Tracker, overlap
from utils.video import Video, VideoWriter

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    network = FERNet(Architecture(width=0.1))
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    save_checkpoint(path, Checkpoint(network.architecture, network.state_dict(), EMOTIONS, 48))
    return path


@pytest.fixture(scope="module")
def astronaut():
    return photographs.astronaut()


@pytest.fixture(scope="module")
def hopper():
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return read_image(Path(path), 3)


@pytest.fixture(scope="module")
def both(astronaut, hopper):
    scale = 512 / hopper.shape[0]
    resized = cv2.resize(hopper, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.hstack([astronaut, resized[:512]])


def save(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


def run(*argv):
    """Call predict.py's main in this process; return the exit status."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["predict.py", *map(str, argv)])
        try:
            predict.main()
        except SystemExit as status:
            return status.code
    return 0


def table(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


# Finding and cutting


def test_squares_by_hand():
    # 100 wide, centre (150, 250): side 120, centre 7 higher.
    assert squares(np.array([[100, 200, 200, 300]], np.float32)).tolist() == [[90, 183, 210, 303]]


def test_what_lies_beyond_the_border_repeats_it():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert cut(image, (0, 0, 4, 4), 4).tolist() == image.tolist()
    beyond = cut(image, (-2, -2, 2, 2), 4)
    assert beyond.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [4, 4, 4, 5]]
    assert cut(image, (2, 2, 6, 6), 4)[3].tolist() == [14, 15, 15, 15]


def test_faces_of_photographs(astronaut, hopper, both):
    (face,) = find_faces(astronaut).boxes
    assert overlap(face, np.array([180, 80, 272, 172])) > 0.8
    assert len(find_faces(hopper).boxes) == 1
    found = find_faces(both)
    assert len(found.boxes) == 2
    assert found.boxes[0][0] > 512 > found.boxes[1][2]  # the larger face, on the right, first
    assert (found.scores > 0.5).all()
    assert len(find_faces(photographs.camera()).boxes) == 0
    assert len(find_faces(photographs.camera(), min_score=0).boxes) > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3, 400), (48, 48, 3), (79, 2000)])
def test_pictures_of_odd_sizes_have_no_face(shape):
    assert len(find_faces(np.full(shape, 90, np.uint8)).boxes) == 0


# As a library


class Echo:
    """A network whose landmarks are the corners and the centre of the face it is given."""

    class_names, image_width, channels = EMOTIONS, 48, 1

    def __call__(self, faces):
        n = len(faces)
        assert faces.shape[1:] == (1, 48, 48)
        assert faces.dtype == np.uint8
        points = np.tile(np.float32([[-0.5, -0.5], [47.5, 47.5], [23.5, 23.5]]), (n, 1, 1))
        return Readings(np.eye(7, dtype=np.float32)[[3] * n], np.full(n, 0.5, np.float32), points)


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr("predictor.load_runtime", lambda *args: Echo())


def test_results_are_in_the_picture_s_pixels(echo, astronaut):
    (face,) = FacePredictor()(astronaut)
    assert isinstance(face, Face)
    assert (face.expression, face.confidence, face.importance) == ("happy", 1, 0.5)
    left, top, right, bottom = squares(face.box[None])[0]
    expected = [[left, top], [right, bottom], [(left + right) / 2, (top + bottom) / 2]]
    # Edges, and pixel centres at whole numbers: half a pixel between them.
    np.testing.assert_allclose(face.landmarks + 0.5, expected, atol=1e-3)
    picture = np.zeros((30, 90, 3), np.uint8)
    (face,) = FacePredictor(cropped=True)(picture)
    assert face.box.tolist() == [0, 0, 90, 30]
    assert face.score is None
    np.testing.assert_allclose(face.landmarks, [[-0.5, -0.5], [89.5, 29.5], [44.5, 14.5]])


def test_a_list_gives_a_list(echo, astronaut, both):
    predictor = FacePredictor(batch_size=2)
    empty = np.zeros((100, 100), np.uint8)
    counts = [len(faces) for faces in predictor([both, empty, astronaut, both])]
    assert counts == [2, 0, 1, 2]
    assert predictor([]) == []
    assert predictor(empty) == []


def test_another_process_gets_a_predictor_too(weights):
    predictor = FacePredictor(weights, cropped=True, gpu_ids=-1, batch_size=2)
    image = synthetic_faces(training=1, public=0, private=0).images[0]
    content = pickle.dumps(predictor)
    assert len(content) < 1000  # without the network
    (face,), (same,) = predictor(image), pickle.loads(content)(image)
    np.testing.assert_array_equal(face.probabilities, same.probabilities)
    assert pickle.loads(content).batch_size == 2
    assert copy(predictor)._runtime is predictor._runtime  # of this process: as the demo does


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 5)), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5), np.uint8), "a.jpg"]
)
def test_what_is_no_picture_is_refused(echo, wrong):
    for given in ([wrong], wrong):
        with pytest.raises(DataError, match="a picture is uint8"):
            FacePredictor()(given)


def test_the_network_reads_what_test_py_would_read(weights):
    faces = synthetic_faces(training=1, public=1, private=1)
    network = load_checkpoint(weights).network()
    expected = inference.predict(network, torch.from_numpy(faces.images)[:, None])
    predictor = FacePredictor(weights, cropped=True, gpu_ids="-1", batch_size=4)
    for i, (face,) in enumerate(predictor(list(faces.images))):
        np.testing.assert_allclose(face.probabilities, expected.probabilities[i], atol=1e-5)
        np.testing.assert_allclose(face.landmarks, expected.landmarks[i], atol=1e-3)


# Pictures


@pytest.fixture
def folder(tmp_path, astronaut, hopper, both):
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    save(folder / "astronaut.png", astronaut)
    save(folder / "more/astronaut.jpg", astronaut)
    save(folder / "both.png", both)
    save(folder / "camera.png", photographs.camera())
    whole = save(folder / "hopper.jpg", hopper).read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_a_folder_of_photographs(weights, folder, tmp_path, both, capsys):
    out = tmp_path / "out"
    assert run(folder, "--out", out, "--model_path", weights, "--gpu_ids", "-1") == 3
    told = capsys.readouterr()
    assert "broken.jpg cannot be read as an image" in told.err
    assert "camera.png: no face found; --cropped" in told.err
    assert "faces: 5;" in told.out
    assert "2 of 6 inputs" in told.out
    rows = table(out)
    counts = {Path(row["file"]).name: row["face"] for row in rows}
    assert counts == {
        "astronaut.jpg": "0",
        "astronaut.png": "0",
        "both.png": "1",
        "hopper.jpg": "0",
    }
    records = json.loads((out / "predictions.json").read_text())
    assert len(records) == len(rows) == 5
    for record, row in zip(records, rows):
        assert (record["frame"], record["time"]) == (None, None)
        assert row["frame"] == row["time"] == ""
        assert row["annotated"].startswith(Path(row["file"]).stem + "_faces")
        assert np.shape(record["landmarks"]) == (68, 2)
        assert [row["x67"], row["y67"]] == [str(v) for v in record["landmarks"][67]]
        shares = [float(row[name]) for name in EMOTIONS]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert record["expression"] == EMOTIONS[int(np.argmax(shares))]
        assert float(row["confidence"]) == max(shares)
        assert 0 < float(row["importance"]) < 1
    drawn = {path.name for path in out.glob("*_faces*.png")}
    assert {row["annotated"] for row in rows} == drawn - {"camera_faces.png"}
    assert drawn == {
        *("astronaut_faces.png", "astronaut_faces_2.png", "both_faces.png"),
        *("camera_faces.png", "hopper_faces.png"),
    }
    picture = read_image(out / "both_faces.png", 3).astype(int)
    changed = np.abs(picture - both).sum(-1) > 0
    assert 0.005 < changed.mean() < 0.2
    left, top, right, _ = (int(float(rows[2][k])) for k in ("left", "top", "right", "bottom"))
    assert changed[top, left:right].mean() > 0.9  # the box's upper edge
    np.testing.assert_array_equal(read_image(out / "camera_faces.png", 1), photographs.camera())


def test_pictures_of_every_kind(echo, tmp_path, astronaut):
    sixteen = (photographs.camera()[None].astype(np.uint16) * 257)[0]
    Image.fromarray(sixteen).save(tmp_path / "16bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "16bit.png", 1), photographs.camera())
    image = Image.fromarray(astronaut)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.convert("L").save(tmp_path / "grey.tif")
    image.quantize(64).save(tmp_path / "palette.gif")
    image.save(tmp_path / "p.webp")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    alpha = image.copy()
    alpha.putalpha(255)
    alpha.save(tmp_path / "alpha.png")
    cv2.imwrite(str(tmp_path / "radiance.hdr"), np.float32(astronaut[..., ::-1]) / 255)
    predictor = FacePredictor()
    (expected,) = predictor(astronaut)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for file in files:
        if file.name != "16bit.png":
            (face,) = predictor(read_image(file, 3))
            assert overlap(face.box, expected.box) > 0.8, file


def test_what_is_behind_a_transparent_pixel_stays_there(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    red, grey = read_image(tmp_path / "a.png", 3)[:, 0].tolist()
    assert (red, grey) == ([255, 0, 0], [128, 128, 128])


def test_cropped_faces(weights, tmp_path):
    faces = synthetic_faces(training=1, public=1, private=1)
    for i, image in enumerate(faces.images[:5]):
        save(tmp_path / f"{i}.png", image)
    argv = (tmp_path / "*.png", "--model_path", weights, "--gpu_ids", "-1")
    assert run(*argv, "--out", tmp_path / "a", "--cropped", "--no_draw") == 0
    rows = table(tmp_path / "a")
    assert [Path(row["file"]).name for row in rows] == [f"{i}.png" for i in range(5)]
    assert {row["score"] for row in rows} == {row["annotated"] for row in rows} == {""}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        *("predictions.csv", "predictions.json", ".lock")
    }
    least = sorted(float(row["confidence"]) for row in rows)[2] - 1e-4  # as it is rounded
    assert run(*argv, "--out", tmp_path / "b", "--cropped", "--min_confidence", least) == 0
    assert len(table(tmp_path / "b")) == 3


def test_a_small_face_is_drawn_enlarged_with_its_caption_above_it(tmp_path, weights):
    picture = save(tmp_path / "a.png", synthetic_faces(training=1, public=0, private=0).images[0])
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "o")
    assert run(picture, "--cropped", *argv) == 0
    drawn = read_image(tmp_path / "o/a_faces.png", 3)
    assert drawn.shape == (400, 320, 3)  # a band of a quarter of the face's width on top
    assert (drawn[:80] == BLUE).all(2).any()
    assert not (drawn[:75] == BLUE).all(2)[:, -3:].any()  # the caption ends within the picture


def test_no_face_leaves_a_table_that_can_be_read(tmp_path, weights, capsys):
    save(tmp_path / "camera.png", photographs.camera())
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden/b.png", photographs.camera())
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--no_draw", "--out", tmp_path / "o")
    assert run(tmp_path, *argv) == 3
    assert capsys.readouterr().err.count("no face found") == 1
    names = pd.read_csv(tmp_path / "o/predictions.csv").columns
    assert list(names)[-7:] == list(EMOTIONS)
    assert json.loads((tmp_path / "o/predictions.json").read_text()) == []


def test_a_folder_s_earlier_results_are_left_out_and_a_closed_folder_is_named(
    weights, tmp_path, astronaut, capsys, monkeypatch
):
    (tmp_path / "in/closed").mkdir(parents=True)
    save(tmp_path / "in/a.png", astronaut)
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out")
    assert run(tmp_path / "in", *argv, tmp_path / "in/first") == 0
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert run(tmp_path / "in", *argv, tmp_path / "second") == 3
    told = capsys.readouterr()
    assert f"left out {tmp_path}/in/first" in told.out
    assert f"{tmp_path}/in/closed cannot be read" in told.err
    assert len(table(tmp_path / "second")) == 1
    assert run(tmp_path / "in/first", *argv, tmp_path / "third") == 0  # it was asked for


def test_a_class_may_be_named_as_a_column_is(tmp_path):
    record = {"left": 3.0, "probabilities": {"left": 0.25, "x0": 0.5, "glad": 0.25}}
    record["landmarks"] = [[7.0, 8.0]]
    for name, written in (("some", [record]), ("none", [])):
        (tmp_path / name).mkdir()
        with Records.opened(tmp_path / name, record) as records:
            for each in written:
                records.write(each)
        header = "left,probabilities_left,probabilities_x0,glad,x0,y0\n"
        lines = header + "3.0,0.25,0.5,0.25,7.0,8.0\n" * len(written)
        assert (tmp_path / name / "predictions.csv").read_text() == lines
        assert json.loads((tmp_path / name / "predictions.json").read_text()) == written


def test_a_full_disk_costs_no_record_that_was_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    record = {"left": 3.0, "probabilities": {"glad": 0.25}}

    def fill():
        with Records.opened(tmp_path, record) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            try:
                while True:
                    writer.write(record)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(RunError, match="free disk space"):
        fill()
    kept = json.loads((tmp_path / "predictions.json").read_text())
    assert len(kept) == len(table(tmp_path)) > 100
    assert kept == [record] * len(kept)


@pytest.mark.parametrize("after", [0, 1])
def test_ctrl_c_leaves_both_files_whole(tmp_path, monkeypatch, after):
    record, append, calls = {"left": 3.0}, records._Ended.append, []

    def interrupted(self, content):
        calls.append(1)
        if len(calls) == 4 + after:  # the second record, in the table or in the other file
            append(self, content[:5])
            raise KeyboardInterrupt
        append(self, content)

    def write():
        with Records.opened(tmp_path, record) as writer:
            for _ in range(3):
                writer.write(record)

    monkeypatch.setattr(records._Ended, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert json.loads((tmp_path / "predictions.json").read_text()) == [record]
    assert table(tmp_path) == [{"left": "3.0"}]


def test_a_loop_of_links_and_an_empty_file_are_named(weights, tmp_path, capsys):
    for name in ("loop.jpg", "loop.mp4"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "zero.jpg").touch()
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "o")
    assert run(tmp_path / "loop*", tmp_path / "zero.jpg", *argv) == 3
    told = capsys.readouterr().err
    assert told.count("warning: ") == 3
    assert "zero.jpg cannot be read as an image (the file is empty)" in told


def test_a_pattern_may_match_folders_and_a_picture_is_read_once(weights, tmp_path, astronaut):
    (tmp_path / "one").mkdir()
    picture = save(tmp_path / "one/a.png", astronaut)
    around = tmp_path / "one/../one/a.png"
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--no_draw", "--out", tmp_path / "o")
    assert run(f"{tmp_path}/o*", around, picture, *argv) == 0
    assert len(table(tmp_path / "o")) == 1


def test_mistakes(weights, tmp_path, capsys, astronaut):
    with pytest.raises(DataError, match="nowhere"):
        run(tmp_path / "nowhere.jpg", "--model_path", weights)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        run(tmp_path / "empty", "--model_path", weights)
    picture = save(tmp_path / "a.png", astronaut)
    with pytest.raises(WeightsError, match="no weight file"):
        run(picture, "--model_path", tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"export\.py"):
        run(picture, "--model_path", tmp_path / "none.onnx")
    with pytest.raises(OptionError, match="at least 1"):
        run(picture, "--every", 0)
    for option, value in (
        ("--smooth", "nan"),
        ("--smooth", -1),
        ("--min_confidence", 7),
        ("--detail", 5),
        ("--min_score", "nan"),
        ("--batch_size", 0),
        ("--threads", -1),
    ):
        with pytest.raises(OptionError, match=f"{option.strip('-')} .* must be"):
            run(picture, "--model_path", weights, option, value)
    shutil.copy(weights, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match=r"name the weights in it: .*best\.pth"):
        run(picture, "--model_path", tmp_path)
    with pytest.raises(DataError, match="a path is empty"):
        run("")
    for name in ("9" * 20, "a" * 300):
        with pytest.raises(DataError, match="no such file"):
            run(name)
    with pytest.raises(OptionError, match="name a picture"):
        run()
    (tmp_path / "text.png").write_text("no picture")
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "o")
    assert run(tmp_path / "text.png", 99, *argv) == 3
    told = capsys.readouterr().err
    assert "camera 99 cannot be opened" in told
    assert "text.png cannot be read" in told
    with pytest.raises(ProjectError, match="holds files already"):
        run(picture, *argv)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are Linux's")
def test_names_that_are_not_utf8(weights, astronaut, hopper, tmp_path, capsys):
    photo = save(tmp_path / "a.png", astronaut)
    (tmp_path / "in").mkdir()
    for name in (b"caf\xe9.png", b"film\xe9.mp4"):
        shutil.copy(photo, os.fsencode(tmp_path / "in") + b"/" + name)
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "a.png", *argv) == 3  # the video alone is at fault
    assert "opens no name that is not UTF-8" in capsys.readouterr().err
    assert [Path(row["file"]).name for row in table(tmp_path / "out")] == ["caf\ufffd.png", "a.png"]
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


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
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=pauses)
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
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=100)
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
        with InOrder() as order:
            for number in range(4):
                order.submit(work, number)
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


def test_faces_are_sought_while_the_network_reads(echo, tmp_path, moving):
    file = write_video(tmp_path / "film.mp4", moving)
    find, read, sought, ahead = FacePredictor.find, FacePredictor.read, [], threading.Event()

    def finding(self, image, detail):
        sought.append(1)
        if len(sought) == 24:  # the network has the first 16
            ahead.set()
        return find(self, image, detail)

    def reading(self, cuts):
        assert ahead.wait(20)
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
    monkeypatch.setattr("utils.video.time.monotonic", lambda: float(next(clock)))
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
    for forget, numbers in ((1.0, [0, 1, 2]), (3.0, [0, 0, 0])):
        tracker = Tracker(0.3, forget)
        assert [tracker.follow(box, read, t)[0].number for t in (0.0, 1.2, 2.4)] == numbers


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
    figure = expressions_over_time({"face 0": (np.arange(5) * STEP, shares)}, EMOTIONS, "film")
    (axes,) = figure.axes
    assert len(axes.collections) == 7
    for band in axes.collections:
        spans = [path.get_extents() for path in band.get_paths()]
        assert [(round(s.x0, 9), round(s.x1, 9)) for s in spans] == [(0, 0.4), (0.6, 0.8)]


@pytest.mark.parametrize(("rate", "every"), [(25, 1), (25, 5), (25, 8), (30, 30), (10, 2)])
def test_the_plot_has_no_gap_where_a_face_stays(rate, every):
    tracker = Tracker(0.3, 10, max(STEP, every / rate))
    for number in range(0, 10 * rate, every):
        tracker.follow(np.array([[0, 0, 9.0, 9.0]]), np.eye(7)[:1], number / rate)
    (track,) = tracker.tracks
    assert sorted(track.past) == list(range(max(track.past) + 1))


def test_a_dollar_is_a_dollar(tmp_path):
    shares = np.full((2, 2), 0.5)
    names = ("Ke$ha_$_$", "a$b_c$d")
    figure = expressions_over_time({"face 0": (np.arange(3.0), shares)}, names, "A$AP_-_Ke$ha")
    figure.savefig(tmp_path / "a.png")
    confusion_matrix(np.eye(2, dtype=int), names, "A$AP_-_Ke$ha").savefig(tmp_path / "b.png")


def test_figures_ask_for_no_font_that_is_not_there(tmp_path):
    first, *others = rcParams["font.family"]
    assert first == "DejaVu Sans"  # Matplotlib's own
    for name in others:
        assert findfont(name, fallback_to_default=False)


def test_a_class_without_faces_has_no_shares():
    figure = confusion_matrix(np.array([[3, 1], [0, 0]]), ("a", "b"), "t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["75 %\n3", "25 %\n1", "-", "-"]


# The network


def test_nothing_is_fetched_by_an_import(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*args): raise AssertionError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "import predict\n"
        "try: predict.FacePredictor('none.onnx')\n"
        "except predict.ProjectError as error: print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "there is no model none.onnx" in result.stdout
