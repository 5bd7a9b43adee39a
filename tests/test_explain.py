"""Explanations: exact decompositions of the logits, facial parts, and aligned crops."""

import json
import math
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from photos import run, save
from test_export import save as save_weights
from test_export import trained_network

from data.dataset import EMOTIONS
from data.synthetic.generate import synthetic_dataset
from inference.align import (
    align,
    box_matrix,
    crop_aligned,
    fit_similarity,
    jitter,
    landmark_shifts,
    transform,
)
from inference.detector import crop
from inference.explain import PARTS, part_shares, split_by_part
from inference.predictor import FacePredictor
from inference.runtime import Runtime, load_runtime
from inference.visualize import draw_heat_maps
from models.checkpoint import load_checkpoint, save_checkpoint
from models.explain import explain, linear_cells
from models.fernet import Architecture
from tools.report_explanations import explanation_figure, plot_mean_explanations
from utils.errors import DataError, OptionError
from utils.predictions import Predictions

ARCHITECTURES = [
    Architecture(width=0.1),
    Architecture(width=0.1, landmark_pool=True),
    Architecture(width=0.1, pool="corner", channels=3),
    Architecture(width=0.1, backbone="vgg11", importance=False, landmarks=False),
    Architecture(width=0.25, downsample="pool", mirror=True),
]


@pytest.fixture(scope="module")
def images():
    return synthetic_dataset(training=1, public=0, private=0).images


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    return save_weights(trained_network(ARCHITECTURES[1]), path)


# Class activation maps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bias_and_maps_add_up_to_the_logits(architecture, images):
    network = trained_network(architecture)
    pixels = torch.from_numpy(images)[:, None]
    with torch.inference_mode():
        expected = network(pixels).weighted_logits
        probabilities, *_, logits, bias, maps = explain(network, pixels)
    assert maps.shape[:2] == (len(images), 7)
    np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-5)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(bias + maps.mean((2, 3)), expected, atol=1e-4)
    assert maps.std() > 0


def test_features_pooled_at_landmarks_are_added_where_the_landmarks_are(images):
    network = trained_network(Architecture(width=0.1, landmark_pool=True, importance=False))
    torch.nn.init.zeros_(network.landmark_head.weight)
    torch.nn.init.constant_(network.landmark_head.bias, -0.5)  # the center of cell (1, 1) of 6
    network.mean_face.zero_()
    pixels = torch.from_numpy(images)[:, None]
    with torch.inference_mode():
        *_, pooled = explain(network, pixels)
        network.part_layer.weight.data.zero_()
        *_, plain = explain(network, pixels)
    difference = pooled - plain
    assert difference[..., 1, 1].abs().min() > 1e-3
    difference[..., 1, 1] = 0
    assert difference.abs().max() < 1e-4


def test_the_absolute_difference_of_a_mirrored_pair_is_linear_given_its_sign():
    cells = torch.tensor(
        [[[[1.0, 2.0]], [[0.0, 3.0]]], [[[5.0, 1.0]], [[0.0, 2.0]]]]
    )  # [2, 2, 1, 2]
    # Image 0: a = 1.5, b = 1.5; image 1: a = 3, b = 1.
    assert linear_cells(cells).mean((2, 3)).tolist() == [[3, 0], [4, 2]]
    random = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    a, b = random.mean((2, 3)).chunk(2, 1)
    expected = torch.cat([a + b, (a - b).abs()], 1)
    assert ((a - b) < 0).any()
    np.testing.assert_allclose(linear_cells(random).mean((2, 3)), expected, atol=1e-6)


# Facial parts


def test_parts_share_the_cells_by_area():
    landmarks = synthetic_dataset(training=1, public=0, private=0).landmarks[0]
    shares = part_shares(landmarks, 48, 6)
    np.testing.assert_allclose(shares.sum(0), 1)
    names = [*PARTS, "background"]
    for name, (first, last) in PARTS.items():
        x, y = (landmarks[first : (first + last) // 2].mean(0) / 8).astype(int)
        assert shares[names.index(name), y, x] > 0.3, name
    assert shares[names.index("background"), 0, 0] == 1
    heat = np.random.default_rng(0).normal(size=(6, 6))
    assert sum(split_by_part(heat, landmarks, 48).values()) == pytest.approx(heat.mean())
    assert split_by_part(heat, None, 48)["background"] == pytest.approx(heat.mean())


# Aligned crops


def test_a_similarity_transform_is_recovered():
    points = np.random.default_rng(0).normal(size=(68, 2))
    expected = np.array([[1.6, -1.2, 5], [1.2, 1.6, -3]])  # twice as large, rotated
    np.testing.assert_allclose(fit_similarity(points, transform(expected, points)), expected)


def test_landmarks_of_an_implausible_size_are_no_face():
    matrix, mean_face = box_matrix(np.array([10, 20, 106, 116]), 48), np.eye(3, 2) * 20
    moved = align(matrix, mean_face * 1.5 + 2, mean_face)
    np.testing.assert_allclose(moved, [[3, 0, 14.5], [0, 3, 24.5]], atol=1e-9)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    turned = mean_face @ turn.T * 1.2 + [9, -4]
    mapped = transform(align(matrix, turned, mean_face), mean_face)
    np.testing.assert_allclose(mapped, transform(matrix, turned), atol=1e-9)
    for landmarks in (mean_face * 2.1, mean_face * 0, mean_face * 0.4):
        assert align(matrix, landmarks, mean_face) is None
    assert align(matrix, mean_face, mean_face * 0) is None  # of an untrained network


def test_the_aligned_crop_of_a_box_is_its_crop(astronaut):
    for box in ((150, 60, 294, 204), (-20, 60, 76, 156), (200, 90, 224, 114)):
        aligned = crop_aligned(astronaut, box_matrix(np.array(box), 48), 48)
        difference = np.abs(aligned.astype(int) - crop(astronaut, box, 48))
        assert difference.mean() < 1, box


def test_views_are_jittered_around_the_center():
    matrix = box_matrix(np.array([10, 20, 58, 68]), 48)
    assert jitter(matrix, 48, 0) is matrix
    smaller = jitter(matrix, 48, 2)  # 1.05 times the crop
    np.testing.assert_allclose(transform(smaller, np.array([23.5, 23.5])), [33.5, 43.5])
    assert smaller[0, 0] == pytest.approx(1.05)
    shifted = jitter(matrix, 48, 3)  # 3 % to the right, rotated by 4 degrees
    np.testing.assert_allclose(transform(shifted, np.array([23.5, 23.5])), [34.94, 43.5])
    assert np.degrees(np.arctan2(shifted[0, 1], shifted[0, 0])) == pytest.approx(4)


class ShiftedRuntime(Runtime):
    """Predicts the mean face, 6 pixels to the right in the first crop; stores its crops."""

    class_names, image_width, channels, unsure_below = EMOTIONS, 48, 1, 0.0
    mean_face = np.float32([[10, 10], [40, 10], [24, 40]])
    later_shift = 0  # in pixels of the crop, so that the landmarks follow it
    scale = 1

    def __init__(self):
        self.crops = []

    def __call__(self, faces, explain=False):
        self.crops.append(faces)
        shift = [6, 0] if len(self.crops) == 1 else [self.later_shift, 0]
        n = len(faces)
        landmarks = np.tile(self.mean_face * self.scale + np.float32(shift), (n, 1, 1))
        probabilities = np.eye(7, dtype=np.float32)[[len(self.crops) % 7] * n]
        return Predictions(probabilities, np.ones(n, np.float32), landmarks)


def test_crops_follow_the_landmarks_of_the_first_pass(monkeypatch):
    runtime = ShiftedRuntime()
    monkeypatch.setattr("inference.predictor.load_runtime", lambda *args: runtime)
    image = np.random.default_rng(0).integers(0, 255, (96, 96), np.uint8)
    (face,) = FacePredictor(cropped=True, views=1)(image)
    first, second, third = (crops[0, 0].astype(int) for crops in runtime.crops)
    np.testing.assert_allclose(second[:, :42], first[:, 6:], atol=1)
    np.testing.assert_array_equal(third, second)
    np.testing.assert_allclose(face.landmarks, runtime.mean_face * 2 + 0.5 + [12, 0], atol=1e-4)
    runtime.crops.clear()
    (face,) = FacePredictor(cropped=True, views=3)(image)  # classes 3, 4 and 5
    np.testing.assert_allclose(face.probabilities, np.array([0, 0, 0, 1, 1, 1, 0]) / 3, atol=1e-6)
    runtime.crops.clear()
    FacePredictor(cropped=True)(image)
    assert len(runtime.crops) == 1  # a cropped face is predicted as it is
    with pytest.raises(OptionError, match="views 99 must be at most 8"):
        FacePredictor(views=99)
    for value in (-0.1, math.nan):
        with pytest.raises(OptionError, match="max_shift .* must be 0 or more; inf keeps all"):
            FacePredictor(max_shift=value)


def test_detections_whose_landmarks_follow_the_crop_are_left_out(monkeypatch, astronaut):
    runtime = ShiftedRuntime()
    monkeypatch.setattr("inference.predictor.load_runtime", lambda *args: runtime)

    def faces(**options):
        runtime.crops.clear()
        return FacePredictor(**options)(astronaut)

    assert len(faces()) == 1  # the landmarks stay where the first crop has them
    runtime.later_shift = 2  # of 48 pixels: 0.042
    assert faces() == []
    assert len(faces(max_shift=0.05)) == 1
    assert len(faces(cropped=True, views=1)) == 1
    runtime.later_shift, runtime.scale = 0, 3
    assert faces() == []  # three times the mean face
    assert len(faces(max_shift=math.inf)) == 1


def test_released_weights_keep_rotated_faces_and_leave_out_a_mission_patch(astronaut):
    for degrees in (0, 30):
        matrix = cv2.getRotationMatrix2D((224, 115), degrees, 1)  # around the face
        image = cv2.warpAffine(astronaut, matrix, (512, 512), borderMode=cv2.BORDER_REPLICATE)
        (face,) = FacePredictor(gpu_ids="-1")(image)
        assert face.expression == "happy"
        eyes = face.landmarks[42:48].mean(0) - face.landmarks[36:42].mean(0)
        assert np.degrees(np.arctan2(-eyes[1], eyes[0])) == pytest.approx(degrees, abs=6)
    hidden = astronaut.copy()
    hidden[60:190, 150:300] = 128
    image = cv2.resize(hidden, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert FacePredictor(gpu_ids="-1", min_score=0)(image) == []
    (patch,) = FacePredictor(gpu_ids="-1", min_score=0, max_shift=0.04)(image)
    assert patch.box[1] > 150


def test_landmark_shifts_by_hand():
    points = np.zeros((1, 68, 2))
    matrix = box_matrix(np.array([0, 0, 96, 96]), 48)[None]  # 2 pixels of the image each
    moved = points + [3, 4]
    np.testing.assert_allclose(landmark_shifts((matrix, points), (matrix, moved), 48), [5 / 48])


def test_mean_explanations_of_each_class(weights, tmp_path):
    dataset = synthetic_dataset(training=0, public=1, private=0)
    predictions = load_runtime(weights, "-1")(dataset.images[:, None], explain=True)
    counts = np.bincount(predictions.probabilities.argmax(1), minlength=7)
    figure = plot_mean_explanations(load_runtime(weights, "-1"), dataset)
    titles = [axes.get_title() for axes in figure.axes[:7]]
    assert titles == [f"{name}\n(n = {n})" for name, n in zip(EMOTIONS, counts)]
    assert explanation_figure(weights, dataset).startswith(b"\x89PNG")
    assert explanation_figure(tmp_path / "none.pth", dataset) == b""  # a run of test.py
    plain = save_weights(trained_network(ARCHITECTURES[3]), tmp_path / "plain.pth")
    assert explanation_figure(plain, dataset) == b""  # without landmarks
    with pytest.raises(DataError, match="no landmark head"):
        plot_mean_explanations(load_runtime(plain, "-1"), dataset)


# predict.py


def test_explanations_of_photographs(weights, both, tmp_path):
    image = save(tmp_path / "both.png", both)
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--max_shift", "inf")
    assert run("--explain", image, *argv, "--out", tmp_path / "a") == 0
    records = json.loads((tmp_path / "a/predictions.json").read_text())
    assert len(records) == 2
    for record in records:
        explanation = record["explanation"]
        assert explanation["class"] == record["expression"]
        assert [*explanation["parts"]] == [*PARTS, "background"]
        total = explanation["bias"] + sum(explanation["parts"].values())
        assert total == pytest.approx(explanation["logit"], abs=1e-4)
    assert (tmp_path / "a/both_explanation.png").is_file()
    (tmp_path / "x").mkdir()
    save(tmp_path / "x/both.png", np.zeros((90, 90, 3), np.uint8))  # no face, so no figure
    assert run(tmp_path / "x/both.png", image, "--explain", *argv, "--out", tmp_path / "c") == 3
    names = {
        record["annotated"] for record in json.loads((tmp_path / "c/predictions.json").read_text())
    }
    assert names == {"both_faces_2.png"}
    assert (tmp_path / "c/both_explanation_2.png").is_file()
    assert run(image, *argv, "--explain", "sad", "--no_draw", "--out", tmp_path / "b") == 0
    records = json.loads((tmp_path / "b/predictions.json").read_text())
    assert {record["explanation"]["class"] for record in records} == {"sad"}
    header = (tmp_path / "b/predictions.csv").read_text().splitlines()[0]
    assert "explanation_logit,explanation_bias,explanation_brows" in header
    assert not (tmp_path / "b/both_explanation.png").exists()


def test_the_logit_is_the_network_s_divided_by_the_temperature(weights, images, tmp_path):
    checkpoint = load_checkpoint(weights)
    with torch.inference_mode():
        logits = checkpoint.network()(torch.from_numpy(images)[:, None]).weighted_logits.numpy()
    calibrated = tmp_path / "calibrated.pth"
    save_checkpoint(calibrated, replace(checkpoint, temperature=2.0, unsure_below=1.0))
    for path, temperature in ((weights, 1), (calibrated, 2)):
        predictor = FacePredictor(path, cropped=True, explain="fear", gpu_ids="-1")
        faces = [face for (face,) in predictor(list(images))]
        assert {face.explanation.expression for face in faces} == {"fear"}
        values = [face.explanation.logit for face in faces]
        np.testing.assert_allclose(values, logits[:, 2] / temperature, atol=1e-4)
        expected = torch.from_numpy(logits / temperature).softmax(1)
        np.testing.assert_allclose([f.probabilities for f in faces], expected, atol=1e-5)
        assert faces[0].caption.startswith("unsure (") == (temperature == 2)


def test_a_class_that_does_not_exist_is_named(weights, tmp_path):
    with pytest.raises(OptionError, match="explain 'bored' is not a class of the weights: angry"):
        FacePredictor(weights, explain="bored", gpu_ids="-1")
    with pytest.raises(OptionError, match="explain 'bored' is not a class"):
        FacePredictor(weights, gpu_ids="-1").explain = "bored"
    argv = ("--model_path", weights, "--gpu_ids", "-1", "--out", tmp_path / "o")
    text = "--explain bored is neither an input nor a class of the weights, which are angry"
    with pytest.raises(OptionError, match=re.escape(text)):
        run("a.png", "--explain", "bored", *argv)
    with pytest.raises(OptionError, match="no input"):
        run("--explain", "sad", *argv)


def test_heat_maps_are_red_where_the_logit_is_raised(weights, astronaut):
    (face,) = FacePredictor(weights, explain=True, views=0, gpu_ids="-1")(astronaut)
    heat = np.zeros((6, 6), np.float32)
    heat[1, 1], heat[4, 4] = 1, -1
    explanation = face.explanation._replace(map=heat)
    drawn = draw_heat_maps(astronaut, [face._replace(explanation=explanation)]).astype(int)
    for cell, is_red in (((1, 1), True), ((4, 4), False)):
        x, y = transform(explanation.matrix, np.array(cell)).round().astype(int)
        assert (drawn[y, x, 0] > drawn[y, x, 2] + 30) == is_red
    assert (drawn[:20] == astronaut[:20]).all()  # beyond the crop
    moved = explanation.matrix + [[0, 0, 7], [0, 0, 5]]  # the same in a larger image
    larger = np.pad(astronaut, ((5, 9), (7, 3), (0, 0)))
    faces = [face._replace(explanation=explanation._replace(matrix=moved))]
    np.testing.assert_array_equal(draw_heat_maps(larger, faces)[5:-9, 7:-3], drawn)
    outside = explanation._replace(matrix=explanation.matrix + [[0, 0, 5000], [0, 0, 0]])
    drawn = draw_heat_maps(astronaut, [face._replace(explanation=outside)])
    np.testing.assert_array_equal(drawn, astronaut)
