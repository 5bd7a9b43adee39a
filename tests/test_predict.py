"""predict.py on photographs and image files of every kind, and FacePredictor as a library."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from contextlib import closing
from copy import copy
from pathlib import Path

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from photos import run, save, table
from PIL import Image
from skimage import data as photographs

from data.dataset import EMOTIONS
from data.readers.images import read_image
from data.synthetic.generate import synthetic_dataset
from inference import records
from inference.detector import crop, detect_faces, expand_boxes
from inference.face import Face
from inference.predictor import FacePredictor
from inference.records import Records
from inference.tracking import box_iou
from inference.video import VideoFile
from inference.video_writer import VideoWriter
from inference.visualize import BLUE, annotate
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.fernet import Architecture, FERNet
from models.predict import predict
from utils.errors import DataError, OptionError, ProjectError, RunError, WeightsError
from utils.plots import plot_confusion_matrix, plot_expressions_over_time
from utils.run_folder import FERPLUS_WEIGHTS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    network = FERNet(Architecture(width=0.1))
    torch.nn.init.uniform_(network.mean_face, -0.5, 0.5)  # also its prediction
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    save_checkpoint(path, Checkpoint(network.architecture, network.state_dict(), EMOTIONS, 48))
    return path


# Detection and crops


def test_expanded_boxes_by_hand():
    # 100 wide, center (150, 250): side 120, center 7 higher.
    assert expand_boxes(np.array([[100, 200, 200, 300]], np.float32)).tolist() == [
        [90, 183, 210, 303]
    ]


def test_crops_repeat_the_border_of_the_image():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert crop(image, (0, 0, 4, 4), 4).tolist() == image.tolist()
    outside = crop(image, (-2, -2, 2, 2), 4)
    assert outside.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [4, 4, 4, 5]]
    assert crop(image, (2, 2, 6, 6), 4)[3].tolist() == [14, 15, 15, 15]


def test_detection_on_photographs_the_largest_face_first(astronaut, hopper, both):
    (face,) = detect_faces(astronaut).boxes
    assert box_iou(face, np.array([180, 80, 272, 172])) > 0.8
    assert len(detect_faces(hopper).boxes) == 1
    found = detect_faces(both)
    assert len(found.boxes) == 2
    assert found.boxes[0][0] > 512 > found.boxes[1][2]  # the larger face, on the right, first
    assert (found.scores > 0.5).all()
    assert len(detect_faces(photographs.camera()).boxes) == 0
    assert len(detect_faces(photographs.camera(), min_score=0).boxes) > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3, 400), (48, 48, 3), (79, 2000)])
def test_images_of_extreme_sizes_have_no_face(shape):
    assert len(detect_faces(np.full(shape, 90, np.uint8)).boxes) == 0


@pytest.fixture
def centerface(tmp_path):
    """A CenterFace model whose heat map is the brightness of 4 x 4 pixels; faces are 40 x 60."""
    channels = {"heat": 1, "log_size": 2, "offset": 2, "landmarks": 10}
    nodes, initializers = [], []
    for name, n in channels.items():
        weight, bias = np.zeros((n, 3, 4, 4), np.float32), np.zeros(n, np.float32)
        if name == "heat":
            weight[:] = 1 / (3 * 4 * 4 * 255)
        if name == "log_size":
            bias[:] = np.log([60 / 4, 40 / 4])
        nodes.append(
            onnx.helper.make_node("Conv", ["x", f"{name}_w", f"{name}_b"], [name], strides=[4, 4])
        )
        initializers += [onnx.numpy_helper.from_array(weight, f"{name}_w")]
        initializers += [onnx.numpy_helper.from_array(bias, f"{name}_b")]

    def tensor(name, n):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, n, None, None])

    outputs = [tensor(*item) for item in channels.items()]
    graph = onnx.helper.make_graph(nodes, "centerface", [tensor("x", 3)], outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)])
    onnx.save(model, tmp_path / "centerface.onnx")
    return tmp_path / "centerface.onnx"


def test_centerface_by_hand(centerface, constant_runtime, tmp_path):
    image = np.zeros((128, 256), np.uint8)
    image[64:68, 100:104] = 255
    image[64:68, 108:112] = 150  # less, and of the same face
    image[32:36, 200:204] = 200
    boxes, scores = detect_faces(image, detector=str(centerface))
    side = 1.02 * 40
    centers = np.array([[102, 66 + 0.045 * 60], [202, 34 + 0.045 * 60]])
    expected = np.hstack([centers - side / 2, centers + side / 2])
    np.testing.assert_allclose(boxes, expected, atol=1e-3)
    np.testing.assert_allclose(scores, [1, 200 / 255], atol=1e-4)
    larger = detect_faces(cv2.resize(image, None, fx=2, fy=2), 256, detector=str(centerface))
    np.testing.assert_allclose(larger.boxes, 2 * expected, atol=1)
    assert len(detect_faces(image, min_score=0.9, detector=str(centerface)).boxes) == 1
    assert len(detect_faces(image, min_score=-1, detector=str(centerface)).boxes) == 2
    assert len(detect_faces(np.zeros((5, 9, 3), np.uint8), detector=str(centerface)).boxes) == 0
    assert len(FacePredictor(detector=centerface)(image)) == 2
    with pytest.raises(WeightsError, match="no such detector"):
        FacePredictor(detector=tmp_path / "none.onnx")
    (tmp_path / "other.onnx").write_bytes(centerface.read_bytes()[:100])
    with pytest.raises(WeightsError, match="is not a CenterFace model"):
        FacePredictor(detector=tmp_path / "other.onnx")


# As a library


def test_results_are_in_pixels_of_the_image(constant_runtime, astronaut):
    (face,) = FacePredictor()(astronaut)
    assert isinstance(face, Face)
    assert (face.expression, face.confidence, face.importance) == ("happy", 1, 0.5)
    left, top, right, bottom = expand_boxes(face.box[None])[0]
    expected = [[left, top], [right, bottom], [(left + right) / 2, (top + bottom) / 2]]
    # Boxes are edges, landmarks are pixel centers: they differ by half a pixel.
    np.testing.assert_allclose(face.landmarks + 0.5, expected, atol=1e-3)
    image = np.zeros((30, 90, 3), np.uint8)
    (face,) = FacePredictor(cropped=True)(image)
    assert face.box.tolist() == [0, 0, 90, 30]
    assert face.score is None
    np.testing.assert_allclose(face.landmarks, [[-0.5, -0.5], [89.5, 29.5], [44.5, 14.5]])


def test_a_list_of_images_gives_a_list_of_faces_each(constant_runtime, astronaut, both):
    predictor = FacePredictor(batch_size=2)
    empty = np.zeros((100, 100), np.uint8)
    counts = [len(faces) for faces in predictor([both, empty, astronaut, both])]
    assert counts == [2, 0, 1, 2]
    assert predictor([]) == []
    assert predictor(empty) == []


def test_a_copy_of_a_predictor_shares_the_network(weights):
    predictor = FacePredictor(weights, cropped=True, gpu_ids=-1)
    assert copy(predictor).runtime is predictor.runtime


@pytest.mark.parametrize(
    "wrong", [np.zeros((5, 5)), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5), np.uint8), "a.jpg"]
)
def test_invalid_images_are_refused(constant_runtime, wrong):
    for argument in ([wrong], wrong):
        with pytest.raises(DataError, match="an image must be uint8"):
            FacePredictor()(argument)


def test_an_image_that_opencv_could_not_read_is_named(constant_runtime):
    with pytest.raises(DataError, match=r"None is not an image; cv2\.imread"):
        FacePredictor()(None)


def test_the_predictor_agrees_with_models_predict(weights):
    dataset = synthetic_dataset(training=1, public=1, private=1)
    network = load_checkpoint(weights).network()
    expected = predict(network, torch.from_numpy(dataset.images)[:, None])
    predictor = FacePredictor(weights, cropped=True, gpu_ids="-1", batch_size=4)
    for i, (face,) in enumerate(predictor(list(dataset.images))):
        np.testing.assert_allclose(face.probabilities, expected.probabilities[i], atol=1e-5)
        np.testing.assert_allclose(face.landmarks, expected.landmarks[i], atol=1e-3)


# Images


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


def test_the_records_and_annotated_images_of_a_folder(weights, folder, tmp_path, both, capsys):
    out = tmp_path / "out"
    assert run(folder, "--out", out, "--model_path", weights, "--gpu_ids", "-1") == 3
    output = capsys.readouterr()
    assert "broken.jpg cannot be read as an image" in output.err
    assert "camera.png: no face found; --cropped" in output.err
    assert "both.png: 2 faces, " in output.out
    assert (
        f"Results: predictions.csv and .json (5 records) and annotated files in {out}" in output.out
    )
    assert "2 of 6 inputs have no face or could not be read" in output.out
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
        probabilities = [float(row[name]) for name in EMOTIONS]
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)
        assert record["expression"] == EMOTIONS[int(np.argmax(probabilities))]
        assert float(row["confidence"]) == max(probabilities)
        assert 0 < float(row["importance"]) < 1
    annotated = {path.name for path in out.glob("*_faces*.png")}
    assert {row["annotated"] for row in rows} == annotated - {"camera_faces.png"}
    assert annotated == {
        *("astronaut_faces.png", "astronaut_faces_2.png", "both_faces.png"),
        *("camera_faces.png", "hopper_faces.png"),
    }
    image = read_image(out / "both_faces.png", 3).astype(int)
    changed = np.abs(image - both).sum(-1) > 0
    assert 0.005 < changed.mean() < 0.2
    left, top, right, _ = (int(float(rows[2][k])) for k in ("left", "top", "right", "bottom"))
    assert changed[top, left:right].mean() > 0.9  # the box's upper edge
    np.testing.assert_array_equal(read_image(out / "camera_faces.png", 1), photographs.camera())


def test_image_files_of_every_kind(constant_runtime, tmp_path, astronaut):
    sixteen = (photographs.camera()[None].astype(np.uint16) * 257)[0]
    Image.fromarray(sixteen).save(tmp_path / "16bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "16bit.png", 1), photographs.camera())
    image = Image.fromarray(astronaut)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    image.convert("L").save(tmp_path / "gray.tif")
    image.quantize(64).save(tmp_path / "palette.gif")
    image.save(tmp_path / "p.webp")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.jpg", exif=exif, quality=95)
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
            assert box_iou(face.box, expected.box) > 0.8, file


def test_invalid_exif_does_not_hide_the_orientation(tmp_path):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 255
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6)  # to be rotated by 90 degrees clockwise
    entries += struct.pack("<HHI4s", 0x0128, 2, 2, b"2")  # a unit must be a number
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1), np.rot90(pixels, -1))


def test_captions_stay_in_the_image_and_off_the_face():
    plain = np.zeros((200, 300, 3), np.uint8)
    for top, bottom, (first, last) in (
        (60, 160, (30, 61)),  # above the box
        (-30, 110, (110, 160)),  # below it
        (-30, 250, (175, 200)),  # within it, smaller
    ):
        face = Face(np.array([100, top, 240, bottom]), None, "surprise", np.ones(1), 1.0, None)
        drawn = annotate(plain, [face], [face.expression])
        (rows,) = (drawn > 180).all(2).any(1).nonzero()  # OpenCV 4 has thinner letters
        assert first <= rows.min() < rows.max() < last
        (filled,) = ((drawn == BLUE).all(2).sum(1) > 30).nonzero()
        inner = filled[(filled > max(top, 0) + 2) & (filled < bottom - 2)]
        assert len(inner) <= (25 if bottom > 200 else 0)


def test_transparent_pixels_are_gray(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    red, gray = read_image(tmp_path / "a.png", 3)[:, 0].tolist()
    assert (red, gray) == ([255, 0, 0], [128, 128, 128])


def test_cropped_images_need_no_detection_and_can_be_filtered(weights, tmp_path):
    dataset = synthetic_dataset(training=1, public=1, private=1)
    for i, image in enumerate(dataset.images[:5]):
        save(tmp_path / f"{i}.png", image)
    argv = (tmp_path / "*.png", "--model_path", weights, "--gpu_ids", "-1")
    assert run(*argv, "--out", tmp_path / "a", "--cropped", "--no_draw") == 0
    rows = table(tmp_path / "a")
    assert [Path(row["file"]).name for row in rows] == [f"{i}.png" for i in range(5)]
    assert {row["score"] for row in rows} == {row["annotated"] for row in rows} == {""}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        *("predictions.csv", "predictions.json", ".lock")
    }
    least = sorted(float(row["confidence"]) for row in rows)[2] - 1e-4  # it is rounded
    assert run(*argv, "--out", tmp_path / "b", "--cropped", "--min_confidence", least) == 0
    assert len(table(tmp_path / "b")) == 3


def test_a_small_face_is_enlarged_with_its_caption_above_it(tmp_path, weights):
    image = save(tmp_path / "a.png", synthetic_dataset(training=1, public=0, private=0).images[0])
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "o")
    assert run(image, "--cropped", *argv) == 0
    drawn = read_image(tmp_path / "o/a_faces.png", 3)
    assert drawn.shape == (400, 320, 3)  # a band of a quarter of the face's width on top
    assert (drawn[:80] == BLUE).all(2).any()
    assert not (drawn[:75] == BLUE).all(2)[:, -3:].any()  # the caption ends within the image


def test_a_table_without_faces_has_its_columns(tmp_path, weights, capsys):
    save(tmp_path / "camera.png", photographs.camera())
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden/b.png", photographs.camera())
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--no_draw", "--out", tmp_path / "o")
    assert run(tmp_path, *argv) == 3
    assert capsys.readouterr().err.count("no face found") == 1
    names = pd.read_csv(tmp_path / "o/predictions.csv").columns
    assert list(names)[-7:] == list(EMOTIONS)
    assert json.loads((tmp_path / "o/predictions.json").read_text()) == []


def test_earlier_results_are_left_out_and_an_unreadable_folder_is_named(
    weights, tmp_path, astronaut, capsys, monkeypatch
):
    (tmp_path / "in/closed").mkdir(parents=True)
    save(tmp_path / "in/a.png", astronaut)
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out")
    assert run(tmp_path / "in", *argv, tmp_path / "in/first") == 0
    scandir = os.scandir

    def without_permission(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_permission)
    assert run(tmp_path / "in", *argv, tmp_path / "second") == 3
    output = capsys.readouterr()
    assert f"Left out {tmp_path}/in/first" in output.out
    assert f"{tmp_path}/in/closed cannot be read" in output.err
    assert len(table(tmp_path / "second")) == 1
    assert run(tmp_path / "in/first", *argv, tmp_path / "third") == 0  # as it was given


def test_links_to_folders_and_broken_links_are_reported(weights, tmp_path, astronaut, capsys):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in/a.png", astronaut)
    (tmp_path / "in/link.png").symlink_to(tmp_path / "in/a.png")
    (tmp_path / "in/broken.jpg").symlink_to(tmp_path / "none.jpg")
    (tmp_path / "in/album").symlink_to(tmp_path)
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out")
    assert run(tmp_path / "in", *argv, tmp_path / "o") == 3
    output = capsys.readouterr()
    assert f"Left out {tmp_path}/in/album: a link to a folder" in output.out
    assert f"{tmp_path}/in/broken.jpg" in output.err
    assert len(table(tmp_path / "o")) == 1  # a.png and the link to it are one image


def test_a_class_may_have_the_name_of_a_column(tmp_path):
    record = {"left": 3.0, "probabilities": {"left": 0.25, "x0": 0.5, "glad": 0.25}}
    record["landmarks"] = [[7.0, 8.0]]
    for name, written in (("one", [record]), ("none", [])):
        (tmp_path / name).mkdir()
        with Records(tmp_path / name, record) as writer:
            for item in written:
                writer.write(item)
        header = "left,probabilities_left,probabilities_x0,glad,x0,y0\n"
        lines = header + "3.0,0.25,0.5,0.25,7.0,8.0\n" * len(written)
        assert (tmp_path / name / "predictions.csv").read_text() == lines
        assert json.loads((tmp_path / name / "predictions.json").read_text()) == written


def test_records_are_complete_while_others_follow(tmp_path):
    record = {"left": 3.0, "probabilities": {"glad": 0.25}}
    with Records(tmp_path, record) as writer:
        for count in (1, 2):
            writer.write(record)  # a process that is killed here has lost nothing
            assert json.loads((tmp_path / "predictions.json").read_text()) == [record] * count
            assert len(table(tmp_path)) == count


def test_a_full_disk_loses_no_earlier_record(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    record = {"left": 3.0, "probabilities": {"glad": 0.25}}

    def fill():
        with Records(tmp_path, record) as writer:
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
def test_ctrl_c_leaves_both_files_complete(tmp_path, monkeypatch, after):
    record, append, calls = {"left": 3.0}, records._TerminatedFile.append, []

    def interrupted(self, content):
        calls.append(1)
        if len(calls) == 4 + after:  # the second record, in the table or in the other file
            append(self, content[:5])
            raise KeyboardInterrupt
        append(self, content)

    def write():
        with Records(tmp_path, record) as writer:
            for _ in range(3):
                writer.write(record)

    monkeypatch.setattr(records._TerminatedFile, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert json.loads((tmp_path / "predictions.json").read_text()) == [record]
    assert table(tmp_path) == [{"left": "3.0"}]


def test_a_loop_of_links_and_an_empty_file_are_reported(weights, tmp_path, capsys):
    for name in ("loop.jpg", "loop.mp4"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "zero.jpg").touch()
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "o")
    assert run(tmp_path / "loop*", tmp_path / "zero.jpg", *argv) == 3
    errors = capsys.readouterr().err
    assert errors.count("warning: ") == 3
    assert "zero.jpg cannot be read as an image (the file is empty)" in errors


def test_a_pattern_may_match_folders_and_an_image_is_predicted_once(weights, tmp_path, astronaut):
    (tmp_path / "one").mkdir()
    image = save(tmp_path / "one/a.png", astronaut)
    other_path = tmp_path / "one/../one/a.png"
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--no_draw", "--out", tmp_path / "o")
    assert run(f"{tmp_path}/o*", other_path, image, *argv) == 0
    assert len(table(tmp_path / "o")) == 1


def test_wrong_arguments_are_named(weights, tmp_path, capsys, astronaut):
    with pytest.raises(DataError, match="nowhere"):
        run(tmp_path / "nowhere.jpg", "--model_path", weights)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no images and no videos"):
        run(tmp_path / "empty", "--model_path", weights)
    image = save(tmp_path / "a.png", astronaut)
    with pytest.raises(WeightsError, match="no such weight file"):
        run(image, "--model_path", tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"export\.py"):
        run(image, "--model_path", tmp_path / "none.onnx")
    for option, value in (
        ("--every", 0),
        ("--smooth", "nan"),
        ("--smooth", -1),
        ("--min_confidence", 7),
        ("--detection_size", 5),
        ("--min_score", "nan"),
        ("--batch_size", 0),
        ("--threads", -1),
    ):
        with pytest.raises(OptionError, match=f"{option.strip('-')} .*must be"):
            run(image, "--model_path", weights, option, value)
    shutil.copy(weights, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match=r"give the weights in it: .*best\.pth"):
        run(image, "--model_path", tmp_path)
    with pytest.raises(DataError, match="a path is empty"):
        run("")
    for name in ("9" * 20, "a" * 300, "~nobody/a.png"):
        with pytest.raises(DataError, match="no such file or folder"):
            run(name)
    with pytest.raises(OptionError, match="no input; give an image"):
        run()
    with pytest.raises(OptionError, match=r"--gpu_ids 3: .*onnx runs on the CPU"):
        FacePredictor("model.onnx", gpu_ids="3")
    for wrong in ({"batch_size": 2.5}, {"views": "1"}, {"threads": 1.0}):
        with pytest.raises(OptionError, match=r"must be a whole number of at least"):
            FacePredictor(weights, **wrong)
    (tmp_path / "text.png").write_text("no image")
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "o")
    assert run(tmp_path / "text.png", 99, *argv) == 3
    errors = capsys.readouterr().err
    assert "camera 99 cannot be opened" in errors
    assert "text.png cannot be read" in errors
    with pytest.raises(ProjectError, match="holds files already"):
        run(image, *argv)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are Linux's")
def test_file_names_that_are_not_utf8(weights, astronaut, tmp_path, capsys):
    folder, out = (
        Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/in", b"/out\xe9")
    )
    folder.mkdir()
    with closing(VideoWriter(tmp_path / "film.mp4", 10, (512, 512))) as writer:
        writer.write(astronaut)
    image = save(tmp_path / "a.png", astronaut)
    for source, name in ((image, b"caf\xe9.png"), (tmp_path / "film.mp4", b"film\xe9.mp4")):
        shutil.copy(source, os.fsencode(folder) + b"/" + name)
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", out)
    assert run(folder, image, *argv) == 0
    output = capsys.readouterr()
    assert not output.err
    assert "film\ufffd.mp4: 1 frame, 1 face" in output.out
    names = [Path(row["file"]).name for row in table(out)]
    assert names == ["caf\ufffd.png", "a.png", "film\ufffd.mp4"]
    assert len(list(out.glob("*_faces.png"))) == 2
    (video,) = out.glob("*.mp4")
    assert len(list(VideoFile(video).frames())) == 1


# Printed results


def test_each_image_has_a_line_with_its_expressions(constant_runtime, tmp_path, both, capsys):
    save(tmp_path / "both.png", both)
    save(tmp_path / "one.png", both[:, :512])
    argv = ("--no_draw", "--out", tmp_path / "o")
    assert run(tmp_path / "one.png", tmp_path / "both.png", *argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "one.png: 1 face, happy 100 %",
        "both.png: 2 faces, happy 100 %, happy 100 %",
    ]
    assert lines[2] == f"Results: predictions.csv and .json (3 records) in {tmp_path / 'o'}"
    assert len(lines) == 3


def test_many_images_have_a_summary_by_expression(constant_runtime, tmp_path, capsys):
    for i in range(21):
        save(tmp_path / f"{i}.png", np.full((48, 48), 10 * i, np.uint8))
    argv = ("--cropped", "--no_draw", "--out", tmp_path / "o")
    assert run(tmp_path, *argv) == 0
    assert capsys.readouterr().out.splitlines()[0] == "21 images: 21 faces, 21 happy"


def test_results_are_written_to_predictions_and_never_overwritten(
    constant_runtime, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    image = save(tmp_path / "a.png", np.zeros((48, 48), np.uint8))
    weights_before = sorted(FERPLUS_WEIGHTS.parent.iterdir())
    for _ in range(3):  # within one second
        assert run(image, "--cropped") == 0
    folders = list((tmp_path / "predictions").iterdir())
    assert len(folders) == 3
    assert all(len(table(folder)) == 1 for folder in folders)
    assert sorted(FERPLUS_WEIGHTS.parent.iterdir()) == weights_before
    assert run(tmp_path, "--cropped") == 0  # the results are not images to predict
    assert len(list((tmp_path / "predictions").iterdir())) == 4


# Figures


def test_dollars_in_names_are_not_mathematics(tmp_path):
    probabilities = np.full((2, 2), 0.5)
    names = ("Ke$ha_$_$", "a$b_c$d")
    figure = plot_expressions_over_time(
        {"face 0": (np.arange(3.0), probabilities)}, names, "A$AP_-_Ke$ha"
    )
    figure.savefig(tmp_path / "a.png")
    plot_confusion_matrix(np.eye(2, dtype=int), names, "A$AP_-_Ke$ha").savefig(tmp_path / "b.png")


def test_a_class_without_images_has_no_percentages():
    figure = plot_confusion_matrix(np.array([[3, 1], [0, 0]]), ("a", "b"), "t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["75 %\n3", "25 %\n1", "-", "-"]


# Imports


def test_imports_do_not_use_the_network(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*args): raise AssertionError('the network was used')\n"
        "socket.socket.connect = refuse\n"
        "import predict\n"
        "from utils.errors import WeightsError\n"
        "try: predict.FacePredictor('none.onnx')\n"
        "except WeightsError as error: print(error)\n"
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
    assert "none.onnx: no such model" in result.stdout
