"""Folders, lists, RAF-DB and archives: exact pixels, and errors that name the invalid file."""

import contextlib
import errno
import gzip
import io
import os
import random
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.dataset import EMOTIONS
from data.readers import archives, images
from data.readers.archives import is_archive, unpacked
from data.readers.folders import find_folders, natural_key
from data.readers.images import read_image
from data.readers.layouts import locate
from utils.errors import DataError

WIDTH = 6


def random_image(seed, size=(WIDTH, WIDTH)):
    """Return a random grayscale image, uint8 [height, width]."""
    return np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def make_folders(root, splits=("train", "test"), classes=EMOTIONS, count=2):
    """Write `count` images per class and split; return their seeds by (split, class)."""
    seeds = {}
    for split in splits:
        for name in classes:
            first = len(seeds) * count
            seeds[split, name] = range(first, first + count)
            for seed in seeds[split, name]:
                save(root / split / name / f"{seed}.png", random_image(seed))
    return seeds


def read(path, width=WIDTH, channels=1, class_names=()):
    layout = locate(path)
    assert layout is not None
    assert all(path.is_file() for path in layout.files())
    return layout.read(width, channels, class_names)


def assert_rejected(path, *parts, **options):
    with pytest.raises(DataError) as error:
        read(path, **options)
    for part in parts:
        assert str(part) in str(error.value)


def assert_dataset(dataset, seeds, class_of=lambda name: name):
    """Assert that a data set has the images that `make_folders` wrote."""
    split_of = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
    expected = {
        (random_image(seed).tobytes(), class_of(name), split_of[split])
        for (split, name), image_seeds in seeds.items()
        for seed in image_seeds
    }
    names = [dataset.class_names[label] for label in dataset.labels]
    found = {(i.tobytes(), n, str(s)) for i, n, s in zip(dataset.images, names, dataset.split)}
    assert found == expected
    assert len(dataset) == len(expected)


# Folders


def test_folders_of_subjects_and_several_data_sets_are_errors(tmp_path):
    for name in ("happy", "sad"):
        for subject in ("s0", "s1"):
            save(tmp_path / "a/train" / name / subject / "1.png", random_image(0))
    assert_rejected(tmp_path / "a", tmp_path / "a/train", "several data sets (happy, sad)")
    for name in ("mine", "yours"):
        make_folders(tmp_path / "b" / name)
    assert_rejected(tmp_path / "b", "several data sets (mine, yours); give one with --data")
    assert len(read(tmp_path / "b/mine"))


def test_folders_of_splits_and_classes(tmp_path):
    seeds = make_folders(tmp_path, ("train", "validation", "test"))
    dataset = read(tmp_path)
    assert_dataset(dataset, seeds)
    assert dataset.class_names == EMOTIONS
    assert dataset.landmarks is None
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int64)


def test_nested_folders_with_other_spellings(tmp_path):
    seeds = make_folders(tmp_path / "raw")
    spelled = dict(zip(EMOTIONS, ("Anger", "DISGUSTED", "fear", "Happiness", "sa", "SUR", "ne")))
    inner = tmp_path / "data" / "fer" / "archive"
    for old, new in (("train", "Training"), ("test", "PRIVATE")):
        for name in EMOTIONS:
            (inner / new).mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / old / name).rename(inner / new / spelled[name])
    for name in (".DS_Store", "train.DS_Store", "Thumbs.db", "notes.txt"):
        (inner / "Training" / "Anger" / name).write_bytes(b"not an image")
    (inner / "Training" / "Anger" / "._0.png").write_bytes(b"not an image")
    save(tmp_path / "data" / "__MACOSX" / "train" / "happy" / "1.png", random_image(0))
    assert_dataset(read(tmp_path / "data"), seeds)


def test_ignored_files_are_a_warning(tmp_path, capsys):
    seeds = make_folders(tmp_path)
    (tmp_path / "README.md").write_bytes(b"about")
    save(tmp_path / "figures" / "1.png", random_image(0))  # not a class of any split
    (tmp_path / "test" / "sad" / ".hidden.png").write_bytes(b"")
    assert_dataset(read(tmp_path), seeds)
    assert not capsys.readouterr().err
    ignored = ("holdout/happy/1.png", "train/happy/old/2.png", "test/3.png")
    for name in ignored:
        save(tmp_path / name, random_image(1))
    (tmp_path / "test" / "sad" / "4").write_bytes(b"no suffix")
    (tmp_path / "train" / "loop").symlink_to(tmp_path)
    (tmp_path / "train" / "sad" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert_dataset(read(tmp_path), seeds)
    assert "5 files are ignored, such as train/happy/old/2.png;" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["val", "Valid", "VALIDATION", "public", "PublicTest"])
def test_names_of_the_validation_folder(tmp_path, name):
    make_folders(tmp_path, ("train", name))
    assert read(tmp_path).counts() == {"Training": 14, "PublicTest": 14}


def test_class_numbers_as_folder_names(tmp_path):
    seeds = make_folders(tmp_path, classes="0123456")
    dataset = read(tmp_path)
    assert dataset.class_names == EMOTIONS
    assert_dataset(dataset, seeds, lambda name: EMOTIONS[int(name)])
    reversed_names = EMOTIONS[::-1]  # numbers index --class_names, as in a CSV
    dataset = read(tmp_path, class_names=reversed_names)
    assert dataset.class_names == reversed_names
    assert_dataset(dataset, seeds, lambda name: reversed_names[int(name)])


def test_split_from_file_names(tmp_path):
    make_folders(tmp_path, count=1)
    save(tmp_path / "test" / "sad" / "PublicTest_17.png", random_image(90))
    save(tmp_path / "test" / "sad" / "PrivateTest_18.jpg", random_image(91))
    save(tmp_path / "test" / "sad" / "Training_19.png", random_image(92))
    assert read(tmp_path).counts() == {"Training": 8, "PublicTest": 1, "PrivateTest": 8}


def test_additional_classes_come_last(tmp_path):
    seeds = make_folders(tmp_path, classes=(*EMOTIONS, "contempt", "bored"))
    dataset = read(tmp_path)
    assert dataset.class_names == (*EMOTIONS, "bored", "contempt")
    assert_dataset(dataset, seeds)


def test_custom_classes_without_split_folders(tmp_path):
    make_folders(tmp_path, ("",), classes=("dog", "cat"))
    dataset = read(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.counts() == {"Training": 4}


@pytest.mark.parametrize(
    ("name", "split"), [("test", "PrivateTest"), ("valid", "PublicTest"), ("train", "Training")]
)
def test_root_folder_is_a_split(tmp_path, name, split):
    make_folders(tmp_path, (name,), classes=("dog", "cat"))
    assert read(tmp_path / name).counts() == {split: 4}


def test_class_names_in_any_spelling_and_order(tmp_path):
    seeds = make_folders(tmp_path, classes=("Sadness", "joy"))
    assert read(tmp_path).class_names == ("happy", "sad")  # in FER2013's order
    dataset = read(tmp_path, class_names=("sad", "happiness"))
    assert dataset.class_names == ("sad", "happiness")  # as given
    assert [dataset.class_names[label] for label in dataset.labels[:1]] == ["sad"]
    assert read(tmp_path, class_names=("joy", "sad")).class_names == ("joy", "sad")
    assert_dataset(dataset, seeds, {"Sadness": "sad", "joy": "happiness"}.get)
    assert_rejected(tmp_path, "'joy'", "none of the classes 'sad'", class_names=("sad",))
    names, meanings = ("sad", "happy", "fear"), "'Sadness' for sad, 'joy' for happy"
    assert_rejected(tmp_path, "'fear'", meanings, tmp_path / "train", class_names=names)


def test_two_folders_of_one_class_are_refused(tmp_path):
    make_folders(tmp_path, classes=("joy", "happy", "sad"))
    message = ("folders 'happy', 'joy', which all mean happy", "merge them", "--class_names")
    assert_rejected(tmp_path, *message)
    assert read(tmp_path, class_names=("joy", "happy", "sad")).class_names[0] == "joy"


def test_a_test_set_may_lack_classes_of_fer2013(tmp_path):
    make_folders(tmp_path, ("test",), classes=("sad", "happy"))
    assert read(tmp_path).class_names == EMOTIONS


def test_class_names_that_are_numbers(tmp_path):
    make_folders(tmp_path, classes=("1", "2"))
    assert read(tmp_path, class_names=("2", "1")).class_names == ("2", "1")
    assert_rejected(tmp_path, "'angry'", "--class_names")


def test_class_names_in_both_unicode_normal_forms(tmp_path):
    composed, decomposed = "\xe4rger", "a\u0308rger"
    seeds = make_folders(tmp_path, ("train",), classes=(composed, "b"))
    seeds |= make_folders(tmp_path, ("test",), classes=(decomposed, "b"))
    dataset = read(tmp_path)
    assert dataset.class_names == ("b", composed)
    assert_dataset(dataset, seeds, lambda name: name.replace(decomposed, composed))
    assert read(tmp_path, class_names=(decomposed, "b")).class_names == (decomposed, "b")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux permits names that are not UTF-8")
def test_class_name_that_is_not_utf8(tmp_path):
    make_folders(tmp_path, ("train",), classes=("a", "b"))
    os.rename(tmp_path / "train/b", os.fsencode(tmp_path / "train") + b"/caf\xe9")
    assert_rejected(tmp_path, "'caf\\udce9' is not UTF-8; rename it")


def test_system_folders_are_skipped(tmp_path, monkeypatch):
    seeds = make_folders(tmp_path / "fer2013")
    (tmp_path / "lost+found").mkdir()
    iterdir = Path.iterdir

    def iterdir_without_permission(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", iterdir_without_permission)
    assert_dataset(read(tmp_path), seeds)
    (tmp_path / "fer2013").rename(tmp_path / "other")
    for split in ("train", "test"):
        (tmp_path / "other" / split).rename(tmp_path / split)
    assert_dataset(read(tmp_path), seeds)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("empty", [False, True])
def test_missing_class_is_an_error(tmp_path, split, empty):
    make_folders(tmp_path)
    for image in (tmp_path / split / "fear").iterdir():
        image.unlink()
    if not empty:
        (tmp_path / split / "fear").rmdir()
    assert_rejected(tmp_path, tmp_path / split, "the class 'fear'", "add the missing images")


def test_class_in_the_test_split_only_is_an_error(tmp_path):
    make_folders(tmp_path, classes=("cat", "dog"))
    save(tmp_path / "test" / "cow" / "1.png", random_image(1))
    assert_rejected(tmp_path, tmp_path / "train", "the class 'cow'", "--class_names")


def test_files_are_in_natural_order(tmp_path):
    for number in (10, 9, 100, 1):
        save(tmp_path / "train" / "b" / f"im{number}.png", random_image(number))
        save(tmp_path / "train" / "a" / f"im{number}.png", random_image(number))
    paths = [path.relative_to(tmp_path).as_posix() for path in find_folders(tmp_path).files()]
    assert paths == [f"train/{c}/im{n}.png" for c in "ab" for n in (1, 9, 10, 100)]
    names = ["²", "a2", "1", "a10", "angry"]  # only ASCII digits are numbers
    assert sorted(names, key=natural_key) == ["1", "a2", "a10", "angry", "²"]


# Images


def test_color_and_resizing(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    make_folders(tmp_path, count=1)
    save(tmp_path / "train" / "angry" / "0.png", rgb)
    dataset = read(tmp_path, width=4, channels=3)
    assert dataset.images.shape == (14, 4, 4, 3)
    np.testing.assert_array_equal(dataset.images[0], cv2.resize(rgb, (4, 4), interpolation=3))
    gray = read(tmp_path, width=8).images[0]
    expected = rgb @ [0.299, 0.587, 0.114]
    assert np.abs(gray - expected).max() <= 1


GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I", "1"])
def test_image_modes(tmp_path, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    path = tmp_path / f"image{suffix}"
    expected = GRADIENT
    if mode in ("I;16", "I"):
        Image.fromarray(GRADIENT.astype(np.uint16) * 257).save(path)
    elif mode == "1":
        expected = np.where(GRADIENT > 127, 255, 0)
        Image.fromarray(GRADIENT > 127).save(path)
    else:
        Image.fromarray(GRADIENT).convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path, 1), expected)
    np.testing.assert_array_equal(read_image(path, 3), np.stack([expected] * 3, axis=-1))


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    image = random_image(0, (4, 8))
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1), np.rot90(image, -1))
    assert images.image_size(tmp_path / "a.png") == (8, 4)  # width, height


@pytest.mark.parametrize("content", ["not an image", "truncated", "empty"])
def test_unreadable_image_is_an_error(tmp_path, content):
    make_folders(tmp_path)
    path = save(tmp_path / "train" / "sad" / "z.jpg", random_image(0, (64, 64)))
    image = path.read_bytes()
    contents = {"not an image": b"hello", "truncated": image[:-300], "empty": b""}
    path.write_bytes(contents[content])
    assert_rejected(tmp_path, path, "cannot be read as an image", "replace, convert or remove it")


def test_too_large_image_is_an_error(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", random_image(0, (20, 20)))
    monkeypatch.setattr(images, "MAX_PIXELS", 399)
    with pytest.raises(DataError, match=r"a.png is too large .*20 x 20.* limit is 399"):
        read_image(path, 1)
    content = bytearray(path.read_bytes())
    content[16:24] = b"\0\1\x86\xa0" * 2  # declares 100,000 x 100,000 pixels
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.png is too large"):
        read_image(path, 1)


def test_floating_point_pixels_are_an_error(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif .*floating-point"):
        read_image(tmp_path / "a.tif", 1)


# Lists


def make_lists(root, landmarks=True):
    """Write three train and two validation images 12 x 24; return the first one's landmarks."""
    points = np.random.default_rng(0).uniform(0, 12, (68, 2))
    for split, seeds in (("train", (0, 1, 2)), ("validation", (3, 4))):
        for seed in seeds:
            save(root / "images" / f"{seed}.png", random_image(seed, (12, 24)))
        names = [f"images/{seed}.png" for seed in seeds]
        names[0] = str(root / names[0]) if split == "train" else names[0]  # one absolute path
        (root / f"{split}_images.txt").write_text("\n".join(names) + "\n")
        (root / f"{split}_labels.txt").write_text("".join(f"{seed}\r\n" for seed in seeds))
    if landmarks:
        (root / "images" / "0.txt").write_text(" ".join(map(repr, points.ravel().tolist())))
        text = "\n".join(f"{x!r}, {y!r}" for x, y in points.tolist())
        (root / "images" / "3.txt").write_text(text)
    return points


def test_lists(tmp_path):
    points = make_lists(tmp_path)
    for path in (tmp_path, tmp_path / "train_images.txt"):
        dataset = read(path, width=12)
        assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
        assert dataset.split.tolist() == ["Training"] * 3 + ["PublicTest"] * 2
        assert dataset.class_names == EMOTIONS
        resized = cv2.resize(random_image(4, (12, 24)), (12, 12), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(dataset.images[4], resized)
        assert dataset.has_landmarks.tolist() == [True, False, False, True, False]
        moved = np.stack([points[:, 0], (points[:, 1] + 0.5) / 2 - 0.5], axis=1)
        for index in (0, 3):
            np.testing.assert_allclose(dataset.landmarks[index], moved, atol=1e-5)
        assert dataset.landmarks.dtype == np.float32


@pytest.mark.parametrize("name", ["val", "valid", "dev"])
def test_lists_may_have_the_names_of_split_folders(tmp_path, name):
    make_lists(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / f"validation_{kind}.txt").rename(tmp_path / f"{name}_{kind}.txt")
    assert read(tmp_path).split.tolist() == ["Training"] * 3 + ["PublicTest"] * 2


def test_lists_without_landmarks(tmp_path):
    make_lists(tmp_path, landmarks=False)
    assert read(tmp_path).landmarks is None


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("train_labels.txt", "0\n1\n", ["has 2 lines", "train_images.txt has 3", "line 3"]),
        ("train_labels.txt", "0\n1\n2\n3\n", ["has 4 lines", "line 4", "one label"]),
        ("train_labels.txt", "0\n1.5\n2\n", ["line 2", "'1.5'", "0 to 6"]),
        ("train_labels.txt", "0\n1\n7\n", ["line 3", "'7'", "--class_names"]),
        ("train_labels.txt", "0\n1\n-1\n", ["line 3", "'-1'", "--class_names"]),
        ("train_labels.txt", "", ["is empty", "one entry per line"]),
        ("train_labels.txt", None, ["is missing", "one integer per line"]),
        ("train_images.txt", "images/1.png\nno.png\n", ["line 2", "no.png", "relative to"]),
        ("images/0.txt", "1 " * 135, ["has 135 numbers", "expected 136", "correct or remove"]),
        ("images/0.txt", "1 " * 137, ["has 137 numbers", "expected 136"]),
        ("images/0.txt", "1 2\n3 four\n", ["line 2", "'four'", "expected 136"]),
        ("images/0.txt", "1 " * 135 + "nan", ["not finite", "correct or remove"]),
        ("images/0.txt", "1 " * 135 + "inf", ["not finite"]),
        ("images/0.txt", "1 " * 135 + "1e6", ["far off the image"]),
        ("images/0.txt", "", ["is empty"]),
    ],
)
def test_error_names_the_invalid_list_and_line(tmp_path, name, text, parts):
    make_lists(tmp_path)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    assert_rejected(tmp_path, tmp_path / name, *parts)


def test_list_that_is_not_text_is_an_error(tmp_path):
    make_lists(tmp_path)
    (tmp_path / "train_labels.txt").write_bytes(b"\xff\xfe0\0")
    assert_rejected(tmp_path, tmp_path / "train_labels.txt", "save it as UTF-8")


def test_files_of_lists_include_the_landmarks(tmp_path):
    make_lists(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in locate(tmp_path).files()}
    images = {f"images/{i}.png" for i in range(5)} | {"images/0.txt", "images/3.txt"}
    lists = {f"{s}_{w}.txt" for s in ("train", "validation") for w in ("images", "labels")}
    assert names == images | lists


# RAF-DB

RAF_LABELS = {"train_00001": 5, "train_00002": 1, "test_0001": 4, "test_0002": 7, "train_00003": 6}


def make_raf_db(root):
    """Write five images as RAF-DB's authors distribute them; the label file has another order."""
    for seed, name in enumerate(RAF_LABELS):
        save(root / "Image" / "aligned" / f"{name}_aligned.jpg", random_image(seed, (8, 8)))
        save(root / "Image" / "original" / f"{name}.jpg", random_image(9, (8, 8)))
    text = "".join(f"{name}.jpg {label}\n" for name, label in RAF_LABELS.items())
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text(text)
    return root / "EmoLabel" / "list_patition_label.txt"


def test_raf_db_images_labels_and_splits(tmp_path, monkeypatch):
    file = make_raf_db(tmp_path / "RAF-DB" / "basic")
    aligned = file.parents[1] / "Image" / "aligned"
    for path in (tmp_path, file.parents[1], file):
        dataset = read(path, width=8)
        assert dataset.class_names == EMOTIONS
        expressions = [dataset.class_names[label] for label in dataset.labels]
        assert expressions == ["sad", "surprise", "happy", "neutral", "angry"]
        assert dataset.split.tolist() == ["Training"] * 2 + ["PrivateTest"] * 2 + ["Training"]
        for image, name in zip(dataset.images, RAF_LABELS):
            stored = read_image(aligned / f"{name}_aligned.jpg", 1)
            np.testing.assert_array_equal(image, stored)
    assert len(locate(file).files()) == 6  # with the label file
    monkeypatch.chdir(file.parent)
    assert len(locate(Path(file.name)).files()) == 6
    assert read(file, channels=3).images.shape == (5, WIDTH, WIDTH, 3)


def test_raf_db_with_class_names(tmp_path):
    make_raf_db(tmp_path)
    names = ("Neutral", "contempt", "anger", "sadness", "Happiness", "disgust", "fear", "surprise")
    dataset = read(tmp_path, class_names=names)
    assert dataset.class_names == names
    assert dataset.labels.tolist() == [3, 7, 4, 0, 2]
    assert_rejected(tmp_path, "'surprise', 'neutral'", "name all seven", class_names=EMOTIONS[:5])


@pytest.mark.parametrize("line", ["train_00002.jpg 8", "train_00002.jpg", "00002.jpg 1", "a,b"])
def test_error_names_the_invalid_line_of_raf_db(tmp_path, line):
    file = make_raf_db(tmp_path)
    file.write_text(f"train_00001.jpg 5\n{line}\n")
    assert_rejected(tmp_path, f"{file}, line 2", line, "train_00001.jpg 5")


def test_missing_image_of_raf_db_is_an_error(tmp_path):
    file = make_raf_db(tmp_path)
    (tmp_path / "Image" / "aligned" / "test_0001_aligned.jpg").unlink()
    assert_rejected(tmp_path, f"{file}, line 3", "test_0001_aligned.jpg", "aligned.zip")


# Archives


def pack(folder, archive):
    """Pack the files of a folder in the format of the suffix."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in files:
                packed.write(path, path.relative_to(folder))
    else:
        kind = {".tar": "", ".xz": "xz", ".bz2": "bz2"}.get(archive.suffix, "gz")
        with tarfile.open(archive, f"w:{kind}") as packed:
            packed.add(folder, ".")
    return archive


@pytest.fixture
def unpack_dir(tmp_path, monkeypatch):
    """The folder in which archives are unpacked; it is empty after each test."""
    unpack_dir = tmp_path / "unpack_dir"
    unpack_dir.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(unpack_dir))
    yield unpack_dir
    assert not list(unpack_dir.iterdir())


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2"])
def test_archive_formats(tmp_path, name, unpack_dir):
    seeds = make_folders(tmp_path / "set" / "archive")
    (tmp_path / "folder").mkdir()
    path = pack(tmp_path / "set", tmp_path / "folder" / name)
    assert_dataset(read(path), seeds)
    assert_dataset(read(path.parent), seeds)  # found by its suffix
    assert_dataset(read(path.rename(tmp_path / "by_content")), seeds)


def test_nested_archive(tmp_path, unpack_dir):
    seeds = make_folders(tmp_path / "set")
    (tmp_path / "outer").mkdir()
    pack(tmp_path / "set", tmp_path / "outer" / "fer2013.tar.gz")
    assert_dataset(read(pack(tmp_path / "outer", tmp_path / "one.zip")), seeds)
    (tmp_path / "more").mkdir()
    (tmp_path / "one.zip").rename(tmp_path / "more" / "one.zip")
    assert_rejected(
        pack(tmp_path / "more", tmp_path / "two.zip"), "two.zip/one.zip", "supported are"
    )


def test_unpacked_dataset_has_priority_over_an_archive(tmp_path, unpack_dir):
    make_folders(tmp_path / "old", classes=("cat", "dog"))
    (tmp_path / "data").mkdir()
    archive = pack(tmp_path / "old", tmp_path / "data" / "a.zip")
    assert locate(tmp_path / "data").root == archive
    seeds = make_folders(tmp_path / "data" / "deep" / "set")
    assert_dataset(read(tmp_path / "data"), seeds)


def test_error_names_the_file_within_the_archive(tmp_path, unpack_dir):
    make_folders(tmp_path / "set")
    (tmp_path / "set" / "train" / "sad" / "z.png").write_bytes(b"not an image")
    path = pack(tmp_path / "set", tmp_path / "a.zip")
    assert_rejected(path, f"{path}/train/sad/z.png", "cannot be read as an image")


def test_archive_without_a_dataset_is_an_error(tmp_path, unpack_dir):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.md").write_text("hello")
    path = pack(tmp_path / "set", tmp_path / "a.zip")
    assert_rejected(path, path, "notes.md", "supported are: a CSV")


def tar_of(path, *members):
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../out.png", "/out.png", "a/../../out.png", "..\\out.png", "C:\\o"]
)
def test_members_outside_the_folder_are_an_error(tmp_path, name, unpack_dir):
    tar = tar_of(tmp_path / "a.tar", (tarfile.TarInfo(name), b"x"))
    assert_rejected(
        tar, tar, "out.png" if "out" in name else name, "outside the folder", "do not trust"
    )
    packed = zip_of(tmp_path / "a.zip", **{name: b"x"})
    assert_rejected(packed, packed, "outside the folder", "do not trust")
    assert not list(tmp_path.rglob("out.png"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_members_that_are_not_files_are_an_error(tmp_path, kind, unpack_dir):
    member = tarfile.TarInfo("evil")
    member.type, member.linkname = kind, "/etc/passwd"
    path = tar_of(tmp_path / "a.tar", (member, b""))
    assert_rejected(path, path, "'evil' is a link or a device", "do not trust")


def test_link_in_a_zip_is_an_error(tmp_path, unpack_dir):
    info = zipfile.ZipInfo("evil")
    info.external_attr = 0o120777 << 16
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert_rejected(path, path, "'evil' is a link or a device")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_limits_of_archives(tmp_path, name, monkeypatch, unpack_dir):
    make_folders(tmp_path / "set")
    path = pack(tmp_path / "set", tmp_path / name)
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 10)
    assert_rejected(path, path, "more than 9.53674e-07 GiB, the limit", "unpack it")
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(unpack_dir))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    assert_rejected(path, path, "more than 5 members", "unpack it")


def test_declared_sizes_are_not_trusted(tmp_path, monkeypatch, unpack_dir):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", bytes(5_000_000))
    size = (5_000_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (1).to_bytes(4, "little")))
    assert_rejected(path, path, "a damaged or truncated archive", "download it again")


def test_compressed_file_that_is_not_a_tar_is_an_error(tmp_path, unpack_dir):
    path = tmp_path / "fer2013.csv.gz"
    path.write_bytes(gzip.compress(b"emotion,pixels,Usage\n"))
    assert_rejected(path, path, "If it is a single compressed file, unpack it")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_truncated_and_damaged_archives(tmp_path, name, unpack_dir):
    make_folders(tmp_path / "set", count=1)
    path = pack(tmp_path / "set", tmp_path / name)
    expected, content = read(path), path.read_bytes()
    last = len(content) - (10240 if name == "a.tar" else 100)
    for end in [*range(600, last, 997), last]:
        path.write_bytes(content[:end])
        assert_rejected(path, path, "damaged or truncated", "download it again")
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(4, len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            dataset = read(path)
            # A .tar has no checksum.
            assert name == "a.tar" or dataset.digest == expected.digest


def test_encrypted_archive_is_an_error(tmp_path, unpack_dir):
    path = zip_of(tmp_path / "a.zip", a=b"x")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert_rejected(path, path, "is encrypted", "unpack it")


def test_rar_archive_is_an_error(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!\x1a\x07\x01\0")
    assert_rejected(tmp_path / "a.rar", tmp_path / "a.rar", "RAR", "unpack it")


def test_full_disk_is_an_error(tmp_path, monkeypatch, unpack_dir):
    path = zip_of(tmp_path / "a.zip", a=b"x")

    def raise_full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.shutil, "copyfileobj", raise_full)
    assert_rejected(path, path, unpack_dir, "No space left", "free disk space", "TMPDIR")


def test_temporary_folder_is_removed(tmp_path, unpack_dir):
    path = zip_of(tmp_path / "a.zip", **{"b/c": b"x"})
    assert is_archive(path)
    with unpacked(path) as folder:
        assert Path(folder, "b", "c").read_bytes() == b"x"
    assert not folder.exists()
