"""AffectNet in both of its layouts: pixels, labels, landmarks, and errors that name the file."""

import cv2
import numpy as np
import pytest
from PIL import Image
from test_layouts import assert_rejected, read

from data.dataset import EMOTIONS
from data.source import find_source, load_dataset
from utils.errors import DataError

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry", "contempt")
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,"
HEADER += "valence,arousal"


def picture(seed, width=224, height=224):
    """Return a smooth random RGB image, which JPEG hardly changes: uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def points(seed, low=0, high=224):
    return np.random.default_rng(seed).uniform(low, high, (68, 2)).round(2)


def make_cropped(root):
    """Write 11 Training images (labels 0 to 10) and 8 validation images (0 to 7)."""
    for split, labels in (("train_set", range(11)), ("val_set", range(8))):
        (root / split / "annotations").mkdir(parents=True)
        for label in labels:
            seed = label if split == "train_set" else 100 + label
            save(root / split / "images" / f"{seed}.jpg", picture(seed))
            annotations = {"exp": str(label), "val": "0.1", "aro": "-0.2", "lnd": points(seed)}
            if label % 2:  # as numbers, or as text
                annotations |= {"exp": label, "lnd": points(seed).ravel()}
            for kind, value in annotations.items():
                array = np.array(value).ravel() if kind == "lnd" else np.array(value)
                array = array.astype(str) if kind == "lnd" and not label % 2 else array
                np.save(root / split / "annotations" / f"{seed}_{kind}.npy", array)


def test_cropped_version(tmp_path, capsys):
    make_cropped(tmp_path / "AffectNet")
    dataset = read(tmp_path, width=112, channels=3)
    assert "3 images are dropped (1 none, 1 uncertain, 1 no face)" in capsys.readouterr().out
    assert dataset.class_names == (*EMOTIONS, "contempt")
    assert [dataset.class_names[label] for label in dataset.labels] == [*CLASSES, *CLASSES]
    assert dataset.counts() == {"Training": 8, "PublicTest": 8}
    for i, seed in enumerate([*range(8), *range(100, 108)]):
        expected = cv2.resize(picture(seed), (112, 112), interpolation=cv2.INTER_AREA)
        assert np.abs(dataset.images[i] - expected.astype(int)).mean() < 3
        # From pixels of the crop at 224 to 112: (x + 0.5) / 2 - 0.5.
        np.testing.assert_allclose(dataset.landmarks[i], points(seed) / 2 - 0.25, atol=1e-3)


def test_cropped_version_with_seven_classes(tmp_path, capsys):
    make_cropped(tmp_path)
    dataset = read(tmp_path, class_names=EMOTIONS)
    dropped = "5 images are dropped (2 contempt, 1 none, 1 uncertain, 1 no face)"
    assert dropped in capsys.readouterr().out
    assert (dataset.class_names, len(dataset)) == (EMOTIONS, 14)
    names = ("Contempt", "Happiness")
    dataset = read(tmp_path, class_names=names)
    assert (dataset.class_names, dataset.labels.tolist()) == (names, [1, 0, 1, 0])
    assert_rejected(tmp_path, "'cat', 'dog'", "--class_names", class_names=("cat", "dog"))


def test_images_without_landmarks(tmp_path):
    make_cropped(tmp_path)
    (tmp_path / "train_set" / "annotations" / "1_lnd.npy").unlink()
    assert read(tmp_path).has_landmarks.tolist() == [True, False, *[True] * 14]
    for file in tmp_path.rglob("*_lnd.npy"):
        file.unlink()
    assert read(tmp_path).landmarks is None


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("3_exp", None, ["is missing", "unpack the annotations"]),
        (
            "3_exp",
            np.array("sad"),
            ["the expression is sad, expected 0 to 10", "correct or remove"],
        ),
        ("3_exp", np.array([1, 2]), ["the expression is [1 2]"]),
        ("3_exp", np.array(11), ["the expression is 11"]),
        ("3_exp", np.array(2.5), ["the expression is 2.5"]),
        ("3_exp", np.array([]), ["the expression is []"]),
        ("3_exp", np.array([None]), ["cannot be read", "copy it again"]),  # pickled
        ("3_exp", b"", ["cannot be read", "copy it again"]),
        ("3_lnd", np.zeros(135), ["has 135 numbers", "expected 136"]),
        ("3_lnd", np.full(136, "x"), ["could not convert string", "expected 136"]),
        ("3_lnd", np.full(136, np.nan), ["not finite", "correct or remove"]),
        ("3_lnd", np.full(136, 1e6), ["far off the image"]),
    ],
)
def test_error_names_the_invalid_annotation(tmp_path, name, content, parts):
    make_cropped(tmp_path)
    file = tmp_path / "train_set" / "annotations" / f"{name}.npy"
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content, allow_pickle=True)
    assert_rejected(tmp_path, file, *parts)


def test_cropped_version_without_images_is_an_error(tmp_path):
    (tmp_path / "train_set" / "annotations").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no images/\*\.jpg in train_set/ or val_set/; unpack"):
        find_source(str(tmp_path)).layout.files()


# The lists


def row(name, label, seed, box=(40, 20, 100, 80)):
    landmarks = ";".join(map(str, points(seed, 40, 120).ravel().tolist()))
    return f"{name},{','.join(map(str, box))},{landmarks},{label},0.5,-0.5"


def make_lists(root):
    """Write pictures of 200 x 150 pixels, two faces in one of them, and both lists."""
    names = {"training": ["1/a.jpg", "1/b.jpg", "2/a.PNG"], "validation": ["3/c.jpg"]}
    for seed, name in enumerate(name for values in names.values() for name in values):
        save(root / "Manually_Annotated_Images" / name, picture(seed, 200, 150))
    rows = [HEADER, row("1/a.jpg", 1, 0), row("1/a.jpg", 7, 1, (150, -10, 100, 60))]
    rows += [row("1/b.jpg", 9, 2), row("9/missing.jpg", 10, 3, ("NULL",) * 4)]
    rows += [row("2/a.PNG", 0, 4)]
    (root / "training.csv").write_text("\n".join(rows) + "\n")
    (root / "validation.csv").write_text(row("3/c.jpg", 6, 5) + "\n")  # has no header


def test_lists_of_faces_in_pictures(tmp_path, capsys):
    make_lists(tmp_path)
    for path in (tmp_path, tmp_path / "training.csv", tmp_path / "validation.csv"):
        dataset = read(path, width=40, channels=3)
        assert "2 images are dropped (1 uncertain, 1 no face)" in capsys.readouterr().out
        names = [dataset.class_names[label] for label in dataset.labels]
        assert names == ["happy", "contempt", "neutral", "angry"]
        assert dataset.split.tolist() == ["Training"] * 3 + ["PublicTest"]
        faces = [picture(0, 200, 150)[20:100, 40:140], picture(0, 200, 150)[:50, 150:]]
        for image, face in zip(dataset.images, faces):
            expected = cv2.resize(face, (40, 40), interpolation=cv2.INTER_AREA)
            assert np.abs(image - expected.astype(int)).mean() < 3
        # A face of 100 x 80 pixels at (40, 20), and one that the border cuts to 50 x 50.
        first = (points(0, 40, 120) - (40, 20) + 0.5) * (40 / 100, 40 / 80) - 0.5
        second = (points(1, 40, 120) - (150, 0) + 0.5) * (40 / 50, 40 / 50) - 0.5
        np.testing.assert_allclose(dataset.landmarks[:2], [first, second], atol=1e-3)
    assert read(tmp_path, class_names=EMOTIONS).labels.tolist() == [3, 6, 0]


def test_files_of_the_lists_are_the_pictures_with_a_face(tmp_path):
    make_lists(tmp_path)
    files = find_source(str(tmp_path)).layout.files()
    names = [path.relative_to(tmp_path).as_posix() for path in files]
    pictures = [f"Manually_Annotated_Images/{name}" for name in ("1/a.jpg", "2/a.PNG", "3/c.jpg")]
    assert names == ["training.csv", "validation.csv", *pictures]
    dataset = load_dataset(find_source(str(tmp_path)), 32)
    assert len(dataset) == 4


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("1/a.jpg", "1/x.jpg"), ["training.csv, row 2", "x.jpg; unpack it there"]),
        ((",1,0.5", ",11,0.5"), ["training.csv, row 2", "expression is 11", "correct or remove"]),
        ((",1,0.5", ",,0.5"), ["training.csv, row 2", "the expression is ,"]),
        (("40,20,100,80", "40,NULL,100,80"), ["training.csv, row 2", "40, NULL, 100, 80"]),
        (
            ("40,20,100,80", "40,20,100,-80"),
            ["a.jpg", "[40, 20, 140, -60] is outside", "200 x 150"],
        ),
        (("40,20,100,80", "400,20,9,9"), ["a.jpg", "is outside of its 200 x 150 pixels"]),
        (("100,80,", "100,80,1;"), ["training.csv, row 2", "has 137 numbers", "expected 136"]),
        (("100,80,", "100,80,x"), ["training.csv, row 2", "could not convert string"]),
        (("face_x", "left"), ["training.csv cannot be read (missing columns: face_x)"]),
    ],
)
def test_error_names_the_list_and_row(tmp_path, change, parts):
    make_lists(tmp_path)
    text = (tmp_path / "training.csv").read_text()
    assert change[0] in text
    (tmp_path / "training.csv").write_text(text.replace(*change, 1))
    assert_rejected(tmp_path, *parts)
