"""The three CSV layouts: exact pixels, and errors that name the invalid row."""

import contextlib
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset import EMOTIONS, SPLITS, UNLABELED
from data.readers.fer_csv import read_csv
from data.readers.layouts import locate
from data.source import find_source, load_dataset
from utils.errors import DataError

FER2013 = Path(__file__).resolve().parents[2] / "shared" / "fer2013"
FULL = "emotion,pixels,Usage"


def random_samples(n=6, width=5, seed=0):
    """Return random images [n, width, width], labels and splits."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, width, width), dtype=np.uint8)
    images[0].flat[:4] = 0, 9, 99, 255
    return images, rng.integers(0, 7, n), [SPLITS[i % 3] for i in range(n)]


def pixel_text(image):
    return " ".join(str(int(value)) for value in image.reshape(-1))


def full_rows(n=6, width=5):
    images, labels, splits = random_samples(n, width)
    return [f"{label},{pixel_text(i)},{split}" for i, label, split in zip(images, labels, splits)]


def write(path, header, rows, end="\n"):
    path.write_bytes(end.join([header, *rows, ""]).encode())
    return path


def assert_rejected(path, *parts, **options):
    """Assert that reading the file raises a DataError with all parts in its message."""
    with pytest.raises(DataError) as error:
        read_csv(path, **options)
    for part in (str(path), *parts):
        assert part in str(error.value)


def test_fer2013_csv(tmp_path):
    images, labels, splits = random_samples()
    dataset = read_csv(write(tmp_path / "any.name", FULL, full_rows()))
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.split.tolist() == splits
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int64)
    assert dataset.class_names == EMOTIONS
    assert dataset.landmarks is None


def test_icml_face_data_csv(tmp_path):
    images, labels, splits = random_samples()
    rows = [f"{label}, {split},{pixel_text(i)}" for i, label, split in zip(images, labels, splits)]
    dataset = read_csv(write(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", rows))
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.split.tolist() == splits


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_delimiters_quotes_and_line_ends(tmp_path, delimiter, end, quoting, lower):
    images, labels, splits = random_samples()
    path = tmp_path / "fer.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writerow(["", "USAGE", " Emotion", "Pixels"])
        for number, (image, label, split) in enumerate(zip(images, labels, splits)):
            spelling = split.lower() if lower else f" {split} "
            writer.writerow([number, spelling, label, f" {pixel_text(image)}"])
    dataset = read_csv(path)
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.split.tolist() == splits


def test_many_rows_with_blank_lines_and_repeated_spaces(tmp_path):
    images, labels, splits = random_samples(300)
    rows = [f"{label},{pixel_text(i)},{split}" for i, label, split in zip(images, labels, splits)]
    rows[200] = rows[200].replace(" ", "  ", 3)
    rows.insert(5, "")
    dataset = read_csv(write(tmp_path / "fer.csv", FULL, [*rows, "", " "]))
    np.testing.assert_array_equal(dataset.images, images)


def test_class_names_allow_more_labels(tmp_path):
    path = write(tmp_path / "c.csv", "emotion,pixels", ["7,1 2 3 4", "0,1 2 3 4"])
    assert_rejected(path, "row 2", "emotion is '7', expected one of 0, 1,", "--class_names")
    names = (*EMOTIONS, "contempt")
    dataset = read_csv(path, class_names=names)
    assert dataset.labels.tolist() == [7, 0]
    assert dataset.class_names == names


def test_train_and_test_csv_of_the_challenge(tmp_path):
    images, labels, _ = random_samples()
    train = [f"{label},{pixel_text(image)}" for image, label in zip(images[:4], labels)]
    write(tmp_path / "train.csv", "emotion,pixels", train)
    write(tmp_path / "test.csv", "pixels", [pixel_text(image) for image in images[4:]])
    dataset = locate(tmp_path).read(5, 1, ())
    order = np.argsort(dataset.split == "PrivateTest", kind="stable")
    np.testing.assert_array_equal(dataset.images[order], images)
    assert dataset.labels[order].tolist() == [*labels[:4], UNLABELED, UNLABELED]
    assert dataset.counts() == {"Training": 4, "PrivateTest": 2}
    assert read_csv(tmp_path / "train.csv").counts() == {"Training": 4}
    test = read_csv(tmp_path / "test.csv")
    assert test.counts() == {"PrivateTest": 2}
    assert (test.labels == UNLABELED).all()


def test_complete_csv_has_priority_over_challenge_files(tmp_path):
    write(tmp_path / "train.csv", "emotion,pixels", ["0,1 2 3 4"])
    write(tmp_path / "test.csv", "pixels", ["1 2 3 4"])
    write(tmp_path / "example_submission.csv", "emotion", ["0"])
    write(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", ["3,Training,1 2 3 4"])
    assert locate(tmp_path).paths == (tmp_path / "icml_face_data.csv",)


def test_two_csvs_of_one_kind_are_rejected(tmp_path):
    write(tmp_path / "train.csv", "emotion,pixels", ["0,1 2 3 4"])
    write(tmp_path / "train (1).csv", "emotion,pixels", ["0,1 2 3 4"])
    with pytest.raises(DataError, match=r"several CSVs of Training images.*--data"):
        locate(tmp_path)


def test_resizing_on_load(tmp_path):
    path = write(tmp_path / "fer.csv", FULL, full_rows())
    dataset = load_dataset(find_source(str(path)), width=8, channels=3)
    assert dataset.images.shape == (6, 8, 8)


ROW = "3,1 2 3 4,Training"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("3,1 2 3,Training", "3 pixels, expected 4"),
        ("3,1 2 3 4 5 6 7 8 9,Training", "9 pixels, expected 4"),
        ("3,,Training", "0 pixels"),
        ("3,1 2 3 256,Training", "pixels from 1 to 256, expected 0 to 255"),
        ("3,1 -2 3 4,Training", "pixels from -2 to 4, expected 0 to 255"),
        ("3,1 2.0 3 4,Training", "pixels: could not convert string '2.0'"),
        ("3,1 2 x 4,Training", "pixels: could not convert string 'x'"),
        ("3,1 2 3 4\u00e9,Training", "pixels: could not convert string '4\u00e9'"),
        ("3,1 2 3 " + "9" * 5000 + ",Training", "pixels: could not convert string '999"),
        ("7,1 2 3 4,Training", "emotion is '7', expected one of 0, 1, 2, 3, 4, 5, 6"),
        ("cat,1 2 3 4,Training", "emotion is 'cat', expected one of 0, 1"),
        ("-1,1 2 3 4,Training", "emotion is '-1'"),
        ("happy,1 2 3 4,Training", "emotion is 'happy'"),
        (",1 2 3 4,Training", "emotion is ''"),
        ("3.5,1 2 3 4,Training", "emotion is '3.5'"),
        ("3,1 2 3 4,Trainning", "Usage is 'Trainning', expected one of Training, PublicTest"),
        ("3,1 2 3 4,", "Usage is ''"),
        ("3,1 2 3 4", "Usage is ''"),
        ("3,1 2 \0 4,Training", "could not convert string '\\x00'"),
    ],
)
def test_error_names_the_invalid_row(tmp_path, row, problem):
    path = write(tmp_path / "fer.csv", FULL, [ROW, "", ROW, row, "8,invalid,too"])
    assert_rejected(path, "row 5: ", problem, "correct or remove the row")


@pytest.mark.parametrize(
    ("row", "problem"),
    [(0, "row 2 has more fields"), (2500, "Expected 3 fields in line 2502, saw 4")],
)
def test_error_names_a_row_with_too_many_fields(tmp_path, row, problem):
    rows = [ROW] * 3000
    rows[row] += ",x"
    path = write(tmp_path / "fer.csv", FULL, rows)
    assert_rejected(path, problem, "correct it")


def test_error_names_the_first_invalid_row_of_many(tmp_path):
    rows = [ROW] * 1000
    rows[700], rows[701] = "3,1 2 3 4,Other", "3,1 2 3,Training"
    assert_rejected(write(tmp_path / "fer.csv", FULL, rows), "row 702: ", "'Other'")


def test_pixel_count_that_is_not_a_square(tmp_path):
    path = write(tmp_path / "fer.csv", FULL, ["3,1 2 3,Training"] * 3)
    assert_rejected(path, "row 2: ", "3 pixels, which is not a square (48 x 48 is 2304)")


@pytest.mark.parametrize("content", [FULL.encode(), f"{FULL}\n \n\n".encode()])
def test_file_without_rows(tmp_path, content):
    path = tmp_path / "fer.csv"
    path.write_bytes(content)
    assert_rejected(path, "has a header but no rows", "download the file again")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"0,1 2 3 4,Training\n",
        b"label,image\n0,1 2 3 4\n",
        b"emotion,pixels,pixels\n",
        f"{FULL}\n{ROW}\n".encode("utf-16"),
        f"{FULL}\n{ROW}\n".encode("utf-16-le"),
        b"\x89PNG\r\n\x1a\n\0\0",
    ],
)
def test_files_that_are_not_a_csv_of_images(tmp_path, content):
    path = tmp_path / "fer.csv"
    path.write_bytes(content)
    assert_rejected(path, "is not a CSV of images", "row 1 must name the columns", "UTF-8")


def test_truncated_last_row_is_an_error(tmp_path):
    path = tmp_path / "fer.csv"
    path.write_text("\n".join([FULL, ROW, ROW[:7]]))
    assert_rejected(path, "row 3: 3 pixels, expected 4 as in the first row", "download the file")


SMALL = "\n".join([FULL, *full_rows(4, 3), ""]).encode()
LAST_PIXELS = b"emotion,pixels\n0,11 22 33 44\n1,55 66 77 188\n"


def test_every_truncation_is_detected_or_harmless(tmp_path):
    """Only truncation between two rows, or of the last line end, goes undetected."""
    path = tmp_path / "fer.csv"
    path.write_bytes(SMALL)
    complete = read_csv(path)
    for end in range(len(SMALL)):
        path.write_bytes(SMALL[:end])
        rows = SMALL[:end].count(b"\n") - 1
        try:
            dataset = read_csv(path)
        except DataError:
            continue
        rows += not SMALL[:end].endswith(b"\n")
        assert SMALL[end : end + 1] == b"\n" or SMALL[:end].endswith(b"\n")
        assert len(dataset) == rows
        np.testing.assert_array_equal(dataset.images, complete.images[:rows])
        np.testing.assert_array_equal(dataset.labels, complete.labels[:rows])


def test_truncation_within_the_last_pixel_is_a_warning(tmp_path, capsys):
    """If `pixels` is the last column, a truncated last number is still a number."""
    path = tmp_path / "train.csv"
    path.write_bytes(LAST_PIXELS[:-2])
    assert read_csv(path).images[-1, 1, 1] == 18
    assert "train.csv may be truncated: no line end after row 3" in capsys.readouterr().err
    path.write_bytes(LAST_PIXELS)
    assert read_csv(path).images[-1, 1, 1] == 188
    assert not capsys.readouterr().err


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_valid_dataset_or_a_data_error(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from([SMALL, LAST_PIXELS])))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        dataset = read_csv(path)
        assert dataset.images.dtype == np.uint8
        assert dataset.images.shape[1] == dataset.images.shape[2]
        assert len(dataset.images) == len(dataset.labels) == len(dataset.split)
        assert ((dataset.labels >= UNLABELED) & (dataset.labels < 7)).all()
        assert set(dataset.split) <= set(SPLITS)


def test_real_fer2013(tmp_path, monkeypatch):
    if not FER2013.is_dir():
        pytest.skip(f"the real images are not at {FER2013}")
    path = tmp_path / "fer2013.csv"
    subprocess.run([sys.executable, FER2013 / "make_csv.py", path], check=True)
    sys.path.insert(0, str(FER2013))
    try:
        from make_csv import load_pixels  # noqa: PLC0415
    finally:
        sys.path.remove(str(FER2013))
    with open(FER2013 / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    monkeypatch.setattr("data.source.CACHE_DIR", tmp_path / "cache")
    source, pixels = find_source(str(path)), load_pixels()
    for _ in range(2):  # parsed, then cached
        dataset = load_dataset(source)
        np.testing.assert_array_equal(dataset.images, pixels)
        assert dataset.labels.tolist() == [int(row["emotion"]) for row in rows]
        assert dataset.split.tolist() == [row["Usage"] for row in rows]
        assert dataset.class_names == EMOTIONS
        assert dataset.source == str(path)
    (stored,) = (tmp_path / "cache").iterdir()
    assert stored.stat().st_size > dataset.images.nbytes
