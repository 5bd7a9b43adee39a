"""Folder trees, lists and archives: read to the pixel, and refused by file where they are wrong."""

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

from data import archives, folders
from data.dataset import EMOTIONS
from data.readers.archives import is_archive, unpacked
from data.readers.folders import find_tree, natural_key, read_image
from data.readers.layouts import locate
from utils.errors import DataError

WIDTH = 6


def face(seed, size=(WIDTH, WIDTH)):
    """Return a random grey image, uint8 [height, width]."""
    return np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def make_tree(root, splits=("train", "test"), classes=EMOTIONS, count=2):
    """Write `count` faces a class and split; return their seeds by (split, class)."""
    seeds = {}
    for split in splits:
        for name in classes:
            first = len(seeds) * count
            seeds[split, name] = range(first, first + count)
            for seed in seeds[split, name]:
                save(root / split / name / f"{seed}.png", face(seed))
    return seeds


def read(path, width=WIDTH, channels=1, class_names=()):
    layout = locate(path)
    assert layout is not None
    assert all(path.is_file() for path in layout.files())
    return layout.read(width, channels, class_names)


def refused(path, *parts, **options):
    with pytest.raises(DataError) as error:
        read(path, **options)
    for part in parts:
        assert str(part) in str(error.value)


def check_against(faces, seeds, class_of=lambda name: name):
    """Assert that faces are what `make_tree` wrote."""
    usage_of = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}
    expected = {
        (face(seed).tobytes(), class_of(name), usage_of[split])
        for (split, name), some in seeds.items()
        for seed in some
    }
    names = [faces.class_names[label] for label in faces.labels]
    found = {(i.tobytes(), n, str(u)) for i, n, u in zip(faces.images, names, faces.split)}
    assert found == expected
    assert len(faces) == len(expected)


# Folder trees


def test_tree(tmp_path):
    seeds = make_tree(tmp_path, ("train", "validation", "test"))
    faces = read(tmp_path)
    check_against(faces, seeds)
    assert faces.class_names == EMOTIONS
    assert faces.landmarks is None
    assert (faces.images.dtype, faces.labels.dtype) == (np.uint8, np.int64)


def test_tree_inside_other_folders_in_other_spellings(tmp_path):
    seeds = make_tree(tmp_path / "raw")
    spelled = dict(zip(EMOTIONS, ("Anger", "DISGUSTED", "fear", "Happiness", "sa", "SUR", "ne")))
    inner = tmp_path / "data" / "fer" / "archive"
    for old, new in (("train", "Training"), ("test", "PRIVATE")):
        for name in EMOTIONS:
            (inner / new).mkdir(parents=True, exist_ok=True)
            (tmp_path / "raw" / old / name).rename(inner / new / spelled[name])
    for rubbish in (".DS_Store", "train.DS_Store", "Thumbs.db", "notes.txt"):
        (inner / "Training" / "Anger" / rubbish).write_bytes(b"rubbish")
    (inner / "Training" / "Anger" / "._0.png").write_bytes(b"rubbish")
    save(tmp_path / "data" / "__MACOSX" / "train" / "happy" / "1.png", face(0))
    check_against(read(tmp_path / "data"), seeds)


def test_what_is_left_out_is_told(tmp_path, capsys):
    seeds = make_tree(tmp_path)
    (tmp_path / "README.md").write_bytes(b"about")
    save(tmp_path / "figures" / "1.png", face(0))  # as nobody means a face
    (tmp_path / "test" / "sad" / ".hidden.png").write_bytes(b"")
    check_against(read(tmp_path), seeds)
    assert not capsys.readouterr().err
    meant = ("holdout/happy/1.png", "train/happy/old/2.png", "test/3.png")
    for name in meant:
        save(tmp_path / name, face(1))
    (tmp_path / "test" / "sad" / "4").write_bytes(b"no suffix")
    (tmp_path / "train" / "loop").symlink_to(tmp_path)
    check_against(read(tmp_path), seeds)
    assert "4 files are left out, such as train/happy/old/2.png:" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["val", "Valid", "VALIDATION", "public", "PublicTest"])
def test_names_of_validation(tmp_path, name):
    make_tree(tmp_path, ("train", name))
    assert read(tmp_path).counts() == {"Training": 14, "PublicTest": 14}


def test_codes_as_folders(tmp_path):
    seeds = make_tree(tmp_path, classes="0123456")
    faces = read(tmp_path)
    assert faces.class_names == EMOTIONS
    check_against(faces, seeds, lambda name: EMOTIONS[int(name)])
    backwards = EMOTIONS[::-1]  # numbers count in the order that is asked for, as a CSV's do
    faces = read(tmp_path, class_names=backwards)
    assert faces.class_names == backwards
    check_against(faces, seeds, lambda name: backwards[int(name)])


def test_usage_from_file_names(tmp_path):
    make_tree(tmp_path, count=1)
    save(tmp_path / "test" / "sad" / "PublicTest_17.png", face(90))
    save(tmp_path / "test" / "sad" / "PrivateTest_18.jpg", face(91))
    save(tmp_path / "test" / "sad" / "Training_19.png", face(92))
    assert read(tmp_path).counts() == {"Training": 8, "PublicTest": 1, "PrivateTest": 8}


def test_extra_classes_come_last(tmp_path):
    seeds = make_tree(tmp_path, classes=(*EMOTIONS, "contempt", "bored"))
    faces = read(tmp_path)
    assert faces.class_names == (*EMOTIONS, "bored", "contempt")
    check_against(faces, seeds)


def test_own_classes_and_a_flat_tree(tmp_path):
    make_tree(tmp_path, ("",), classes=("dog", "cat"))
    faces = read(tmp_path)
    assert faces.class_names == ("cat", "dog")
    assert faces.labels.tolist() == [0, 0, 1, 1]
    assert faces.counts() == {"Training": 4}


@pytest.mark.parametrize(
    ("split", "usage"), [("test", "PrivateTest"), ("valid", "PublicTest"), ("train", "Training")]
)
def test_the_folder_of_one_split(tmp_path, split, split):
    make_tree(tmp_path, (split,), classes=("dog", "cat"))
    assert read(tmp_path / split).counts() == {split: 4}


def test_class_names(tmp_path):
    seeds = make_tree(tmp_path, classes=("Sadness", "joy"))
    refused(tmp_path, "'angry', 'disgust', 'fear'", "--class_names", tmp_path / "train")
    faces = read(tmp_path, class_names=("sad", "happiness"))
    assert faces.class_names == ("sad", "happiness")  # as it was asked for
    assert [faces.class_names[label] for label in faces.labels[:1]] == ["sad"]
    assert read(tmp_path, class_names=("joy", "sad")).class_names == ("joy", "sad")
    refused(tmp_path, "'Sadness', read as sad, 'joy', read as happy", tmp_path / "train")
    check_against(faces, seeds, {"Sadness": "sad", "joy": "happiness"}.get)
    refused(tmp_path, "'joy'", "none of the classes 'sad'", class_names=("sad",))
    refused(tmp_path, "'fear'", tmp_path / "train", class_names=("sad", "happy", "fear"))


def test_class_names_that_are_numbers(tmp_path):
    make_tree(tmp_path, classes=("1", "2"))
    assert read(tmp_path, class_names=("2", "1")).class_names == ("2", "1")
    refused(tmp_path, "'angry'", "--class_names")


def test_class_names_in_both_spellings_of_unicode(tmp_path):
    one, apart = "\xe4rger", "a\u0308rger"
    seeds = make_tree(tmp_path, ("train",), classes=(one, "b"))
    seeds |= make_tree(tmp_path, ("test",), classes=(apart, "b"))
    faces = read(tmp_path)
    assert faces.class_names == ("b", one)
    check_against(faces, seeds, lambda name: name.replace(apart, one))
    assert read(tmp_path, class_names=(apart, "b")).class_names == (apart, "b")  # as asked for


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are Linux's")
def test_a_class_name_that_is_not_utf8(tmp_path):
    make_tree(tmp_path, ("train",), classes=("a", "b"))
    os.rename(tmp_path / "train/b", os.fsencode(tmp_path / "train") + b"/caf\xe9")
    refused(tmp_path, "'caf\\udce9' is not in UTF-8; rename it")


def test_what_a_system_keeps_at_the_top_of_a_disk_is_not_looked_at(tmp_path, monkeypatch):
    seeds = make_tree(tmp_path / "fer2013")
    (tmp_path / "lost+found").mkdir()
    iterdir = Path.iterdir

    def closed(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    check_against(read(tmp_path), seeds)
    (tmp_path / "fer2013").rename(tmp_path / "other")
    for split in ("train", "test"):
        (tmp_path / "other" / split).rename(tmp_path / split)
    check_against(read(tmp_path), seeds)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_class(tmp_path, split, empty):
    make_tree(tmp_path)
    for image in (tmp_path / split / "fear").iterdir():
        image.unlink()
    if not empty:
        (tmp_path / split / "fear").rmdir()
    refused(tmp_path, tmp_path / split, "the class 'fear'", "add what is missing")


def test_a_class_in_test_only(tmp_path):
    make_tree(tmp_path, classes=("cat", "dog"))
    save(tmp_path / "test" / "cow" / "1.png", face(1))
    refused(tmp_path, tmp_path / "train", "the class 'cow'", "--class_names")


def test_order_is_natural(tmp_path):
    for number in (10, 9, 100, 1):
        save(tmp_path / "train" / "b" / f"im{number}.png", face(number))
        save(tmp_path / "train" / "a" / f"im{number}.png", face(number))
    paths = [path.relative_to(tmp_path).as_posix() for path in find_tree(tmp_path).files()]
    assert paths == [f"train/{c}/im{n}.png" for c in "ab" for n in (1, 9, 10, 100)]
    names = ["²", "a2", "1", "a10", "angry"]  # only plain digits are numbers
    assert sorted(names, key=natural_key) == ["1", "a2", "a10", "angry", "²"]


# Images


def test_colour_and_resizing(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    make_tree(tmp_path, count=1)
    save(tmp_path / "train" / "angry" / "0.png", rgb)
    faces = read(tmp_path, width=4, channels=3)
    assert faces.images.shape == (14, 4, 4, 3)
    np.testing.assert_array_equal(faces.images[0], cv2.resize(rgb, (4, 4), interpolation=3))
    grey = read(tmp_path, width=8).images[0]
    expected = rgb @ [0.299, 0.587, 0.114]
    assert np.abs(grey - expected).max() <= 1


GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I", "1"])
def test_modes(tmp_path, mode):
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
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image = face(0, (4, 8))
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1), np.rot90(image, -1))


@pytest.mark.parametrize("fault", ["no image", "cut off", "empty"])
def test_an_image_that_cannot_be_read(tmp_path, fault):
    make_tree(tmp_path)
    path = save(tmp_path / "train" / "sad" / "z.jpg", face(0, (64, 64)))
    content = path.read_bytes()
    path.write_bytes({"no image": b"hello", "cut off": content[:-300], "empty": b""}[fault])
    refused(tmp_path, path, "cannot be read as an image", "mend, convert or remove it")


def test_absurd_sizes(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", face(0, (20, 20)))
    monkeypatch.setattr(folders, "MAX_PIXELS", 399)
    with pytest.raises(DataError, match=r"a.png is too large .*20 x 20.* at most 399"):
        read_image(path, 1)
    content = bytearray(path.read_bytes())
    content[16:24] = b"\0\1\x86\xa0" * 2  # a bomb: 100,000 x 100,000 pixels, it says
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.png is too large"):
        read_image(path, 1)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a.tif .*floating-point"):
        read_image(tmp_path / "a.tif", 1)


# Lists


def make_lists(root, landmarks=True):
    """Write three train and two validation faces 12 x 24; return the first one's landmarks."""
    points = np.random.default_rng(0).uniform(0, 12, (68, 2))
    for split, seeds in (("train", (0, 1, 2)), ("validation", (3, 4))):
        for seed in seeds:
            save(root / "images" / f"{seed}.png", face(seed, (12, 24)))
        names = [f"images/{seed}.png" for seed in seeds]
        names[0] = str(root / names[0]) if split == "train" else names[0]  # one absolute
        (root / f"{split}_images.txt").write_text("\n".join(names) + "\n")
        (root / f"{split}_labels.txt").write_text("".join(f"{seed}\r\n" for seed in seeds))
    if landmarks:
        (root / "images" / "0.txt").write_text(" ".join(map(repr, points.ravel().tolist())))
        text = "\n".join(f"{x!r}, {y!r}" for x, y in points.tolist())
        (root / "images" / "3.txt").write_text(text)
    return points


def test_lists(tmp_path):
    points = make_lists(tmp_path)
    for place in (tmp_path, tmp_path / "train_images.txt"):
        faces = read(place, width=12)
        assert faces.labels.tolist() == [0, 1, 2, 3, 4]
        assert faces.split.tolist() == ["Training"] * 3 + ["PublicTest"] * 2
        assert faces.class_names == EMOTIONS
        resized = cv2.resize(face(4, (12, 24)), (12, 12), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(faces.images[4], resized)
        assert faces.has_landmarks.tolist() == [True, False, False, True, False]
        moved = np.stack([points[:, 0], (points[:, 1] + 0.5) / 2 - 0.5], axis=1)
        for index in (0, 3):
            np.testing.assert_allclose(faces.landmarks[index], moved, atol=1e-5)
        assert faces.landmarks.dtype == np.float32


def test_lists_without_landmarks(tmp_path):
    make_lists(tmp_path, landmarks=False)
    assert read(tmp_path).landmarks is None


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("train_labels.txt", "0\n1\n", ["has 2 lines", "train_images.txt has 3", "line 3"]),
        ("train_labels.txt", "0\n1\n2\n3\n", ["has 4 lines", "line 4", "give each image"]),
        ("train_labels.txt", "0\n1.5\n2\n", ["line 2", "'1.5'", "0 to 6"]),
        ("train_labels.txt", "0\n1\n7\n", ["line 3", "'7'", "--class_names"]),
        ("train_labels.txt", "0\n1\n-1\n", ["line 3", "'-1'", "--class_names"]),
        ("train_labels.txt", "", ["is empty", "one entry per line"]),
        ("train_labels.txt", None, ["is missing", "one integer per line"]),
        ("train_images.txt", "images/1.png\nno.png\n", ["line 2", "no.png", "relative to"]),
        ("images/0.txt", "1 " * 135, ["holds 135 numbers", "must hold 136", "mend or remove"]),
        ("images/0.txt", "1 " * 137, ["holds 137 numbers", "must hold 136"]),
        ("images/0.txt", "1 2\n3 four\n", ["line 2", "'four'", "must hold 136"]),
        ("images/0.txt", "1 " * 135 + "nan", ["not finite", "mend or remove"]),
        ("images/0.txt", "1 " * 135 + "inf", ["not finite"]),
        ("images/0.txt", "1 " * 135 + "1e6", ["far off its image"]),
        ("images/0.txt", "", ["is empty"]),
    ],
)
def test_wrong_lists(tmp_path, name, text, parts):
    make_lists(tmp_path)
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text)
    refused(tmp_path, tmp_path / name, *parts)


def test_lists_that_are_no_text(tmp_path):
    make_lists(tmp_path)
    (tmp_path / "train_labels.txt").write_bytes(b"\xff\xfe0\0")
    refused(tmp_path, tmp_path / "train_labels.txt", "save it as UTF-8")


def test_the_files_of_lists_hold_the_landmarks(tmp_path):
    make_lists(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in locate(tmp_path).files()}
    images = {f"images/{i}.png" for i in range(5)} | {"images/0.txt", "images/3.txt"}
    lists = {f"{s}_{w}.txt" for s in ("train", "validation") for w in ("images", "labels")}
    assert names == images | lists


# RAF-DB

RAF_LABELS = {"train_00001": 5, "train_00002": 1, "test_0001": 4, "test_0002": 7, "train_00003": 6}


def make_raf_db(root):
    """Write five faces as RAF-DB's authors hand theirs out; the list has an order of its own."""
    for seed, name in enumerate(RAF_LABELS):
        save(root / "Image" / "aligned" / f"{name}_aligned.jpg", face(seed, (8, 8)))
        save(root / "Image" / "original" / f"{name}.jpg", face(9, (8, 8)))
    text = "".join(f"{name}.jpg {label}\n" for name, label in RAF_LABELS.items())
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text(text)
    return root / "EmoLabel" / "list_patition_label.txt"


def test_raf_db(tmp_path, monkeypatch):
    file = make_raf_db(tmp_path / "RAF-DB" / "basic")
    aligned = file.parents[1] / "Image" / "aligned"
    for place in (tmp_path, file.parents[1], file):
        faces = read(place, width=8)
        assert faces.class_names == EMOTIONS
        expressions = [faces.class_names[label] for label in faces.labels]
        assert expressions == ["sad", "surprise", "happy", "neutral", "angry"]
        assert faces.split.tolist() == ["Training"] * 2 + ["PrivateTest"] * 2 + ["Training"]
        for image, name in zip(faces.images, RAF_LABELS):
            stored = read_image(aligned / f"{name}_aligned.jpg", 1)
            np.testing.assert_array_equal(image, stored)
    assert len(locate(file).files()) == 6  # the list among them
    monkeypatch.chdir(file.parent)
    assert len(locate(Path(file.name)).files()) == 6
    assert read(file, channels=3).images.shape == (5, WIDTH, WIDTH, 3)


def test_class_names_of_raf_db(tmp_path):
    make_raf_db(tmp_path)
    names = ("Neutral", "contempt", "anger", "sadness", "Happiness", "disgust", "fear", "surprise")
    faces = read(tmp_path, class_names=names)
    assert faces.class_names == names
    assert faces.labels.tolist() == [3, 7, 4, 0, 2]
    refused(tmp_path, "'surprise', 'neutral'", "name all seven", class_names=EMOTIONS[:5])


@pytest.mark.parametrize("line", ["train_00002.jpg 8", "train_00002.jpg", "00002.jpg 1", "a,b"])
def test_wrong_lines_of_raf_db(tmp_path, line):
    file = make_raf_db(tmp_path)
    file.write_text(f"train_00001.jpg 5\n{line}\n")
    refused(tmp_path, f"{file}, line 2", line, "train_00001.jpg 5")


def test_images_that_raf_db_lacks(tmp_path):
    file = make_raf_db(tmp_path)
    (tmp_path / "Image" / "aligned" / "test_0001_aligned.jpg").unlink()
    refused(tmp_path, f"{file}, line 3", "test_0001_aligned.jpg", "aligned.zip")


# Archives


def pack(folder, archive):
    """Pack a folder's files by the archive's suffix."""
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
def scratch(tmp_path, monkeypatch):
    """The folder in which archives are unpacked: to be empty again after each test."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    yield scratch
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.bz2"])
def test_archives(tmp_path, name, scratch):
    seeds = make_tree(tmp_path / "set" / "archive")
    (tmp_path / "folder").mkdir()
    path = pack(tmp_path / "set", tmp_path / "folder" / name)
    check_against(read(path), seeds)
    check_against(read(path.parent), seeds)  # where it is looked for by its name
    check_against(read(path.rename(tmp_path / "by_content")), seeds)


def test_an_archive_in_an_archive(tmp_path, scratch):
    seeds = make_tree(tmp_path / "set")
    (tmp_path / "outer").mkdir()
    pack(tmp_path / "set", tmp_path / "outer" / "fer2013.tar.gz")
    check_against(read(pack(tmp_path / "outer", tmp_path / "one.zip")), seeds)
    (tmp_path / "more").mkdir()
    (tmp_path / "one.zip").rename(tmp_path / "more" / "one.zip")
    refused(pack(tmp_path / "more", tmp_path / "two.zip"), "two.zip/one.zip", "known are")


def test_an_unpacked_set_comes_before_an_archive(tmp_path, scratch):
    make_tree(tmp_path / "old", classes=("cat", "dog"))
    (tmp_path / "data").mkdir()
    archive = pack(tmp_path / "old", tmp_path / "data" / "a.zip")
    assert locate(tmp_path / "data").root == archive
    seeds = make_tree(tmp_path / "data" / "deep" / "set")
    check_against(read(tmp_path / "data"), seeds)


def test_errors_name_the_archive(tmp_path, scratch):
    make_tree(tmp_path / "set")
    (tmp_path / "set" / "train" / "sad" / "z.png").write_bytes(b"no image")
    path = pack(tmp_path / "set", tmp_path / "a.zip")
    refused(path, f"{path}/train/sad/z.png", "cannot be read as an image")


def test_an_archive_of_something_else(tmp_path, scratch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.md").write_text("hello")
    path = pack(tmp_path / "set", tmp_path / "a.zip")
    refused(path, path, "notes.md", "known are: a CSV")


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
def test_members_that_climb_out(tmp_path, name, scratch):
    tar = tar_of(tmp_path / "a.tar", (tarfile.TarInfo(name), b"x"))
    refused(tar, tar, "out.png" if "out" in name else name, "outside the folder", "do not trust")
    packed = zip_of(tmp_path / "a.zip", **{name: b"x"})
    refused(packed, packed, "outside the folder", "do not trust")
    assert not list(tmp_path.rglob("out.png"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_members_that_are_no_files(tmp_path, kind, scratch):
    member = tarfile.TarInfo("evil")
    member.type, member.linkname = kind, "/etc/passwd"
    path = tar_of(tmp_path / "a.tar", (member, b""))
    refused(path, path, "'evil' is a link or a device", "do not trust")


def test_a_link_in_a_zip(tmp_path, scratch):
    info = zipfile.ZipInfo("evil")
    info.external_attr = 0o120777 << 16
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(path, path, "'evil' is a link or a device")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_limits(tmp_path, name, monkeypatch, scratch):
    make_tree(tmp_path / "set")
    path = pack(tmp_path / "set", tmp_path / name)
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 10)
    refused(path, path, "more than 9.53674e-07 GiB, the limit", "unpack it yourself")
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    refused(path, path, "more than 5 members", "unpack it yourself")


def test_declared_sizes_are_not_trusted(tmp_path, monkeypatch, scratch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", bytes(5_000_000))
    size = (5_000_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (1).to_bytes(4, "little")))
    refused(path, path, "a damaged or cut-off archive", "fetch it anew")


def test_a_compressed_file_that_is_no_tar(tmp_path, scratch):
    path = tmp_path / "fer2013.csv.gz"
    path.write_bytes(gzip.compress(b"emotion,pixels,Usage\n"))
    refused(path, path, "if it is a single file, no .tar, unpack it and name that")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar"])
def test_cut_off_and_damaged_archives(tmp_path, name, scratch):
    make_tree(tmp_path / "set", count=1)
    path = pack(tmp_path / "set", tmp_path / name)
    whole, content = read(path), path.read_bytes()
    last = len(content) - (10240 if name == "a.tar" else 100)
    for end in [*range(600, last, 997), last]:
        path.write_bytes(content[:end])
        refused(path, path, "damaged or cut-off", "fetch it anew")
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[draw.randrange(4, len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            found = read(path)
            assert name == "a.tar" or found.digest == whole.digest  # a .tar has no checksum


def test_an_encrypted_archive(tmp_path, scratch):
    path = zip_of(tmp_path / "a.zip", a=b"x")
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, path, "is encrypted", "unpack it")


def test_archives_of_other_programs(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!\x1a\x07\x01\0")
    refused(tmp_path / "a.rar", tmp_path / "a.rar", "RAR", "unpack it")


def test_a_full_disk(tmp_path, monkeypatch, scratch):
    path = zip_of(tmp_path / "a.zip", a=b"x")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives, "_copy", full)
    refused(path, path, scratch, "No space left", "free disk space", "TMPDIR")


def test_the_folder_goes_away(tmp_path, scratch):
    path = zip_of(tmp_path / "a.zip", **{"b/c": b"x"})
    assert is_archive(path)
    with unpacked(path) as folder:
        assert Path(folder, "b", "c").read_bytes() == b"x"
    assert not folder.exists()
