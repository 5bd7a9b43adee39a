"""The three CSV layouts: read to the pixel, and refused by row where they are wrong."""

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
from data.readers.fer_csv import parse_pixels, read_csv
from data.readers.layouts import locate
from data.source import find_source, load_dataset
from utils.errors import DataError

FER2013 = Path(__file__).resolve().parents[2] / "shared" / "fer2013"
FULL = "emotion,pixels,Usage"


def some_faces(n=6, width=5, seed=0):
    """Return random pixels [n, width, width], labels and usages."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, width, width), dtype=np.uint8)
    images[0].flat[:4] = 0, 9, 99, 255
    return images, rng.integers(0, 7, n), [SPLITS[i % 3] for i in range(n)]


def text_of(image):
    return " ".join(str(int(value)) for value in image.reshape(-1))


def full_rows(n=6, width=5):
    images, labels, splits = some_faces(n, width)
    return [f"{label},{text_of(i)},{split}" for i, label, split in zip(images, labels, splits)]


def write(path, header, rows, end="\n"):
    path.write_bytes(end.join([header, *rows, ""]).encode())
    return path


def refused(path, *parts, **options):
    """Assert that the file is refused with a message that has all parts."""
    with pytest.raises(DataError) as error:
        read_csv(path, **options)
    for part in (str(path), *parts):
        assert part in str(error.value)


def test_fer2013(tmp_path):
    images, labels, splits = some_faces()
    faces = read_csv(write(tmp_path / "any.name", FULL, full_rows()))
    np.testing.assert_array_equal(faces.images, images)
    np.testing.assert_array_equal(faces.labels, labels)
    assert faces.split.tolist() == splits
    assert (faces.images.dtype, faces.labels.dtype) == (np.uint8, np.int64)
    assert faces.class_names == EMOTIONS
    assert faces.landmarks is None


def test_icml_face_data(tmp_path):
    images, labels, splits = some_faces()
    rows = [f"{label}, {split},{text_of(i)}" for i, label, split in zip(images, labels, splits)]
    faces = read_csv(write(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", rows))
    np.testing.assert_array_equal(faces.images, images)
    np.testing.assert_array_equal(faces.labels, labels)
    assert faces.split.tolist() == splits


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_dialects(tmp_path, delimiter, end, quoting, lower):
    images, labels, splits = some_faces()
    path = tmp_path / "fer.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writerow(["", "USAGE", " Emotion", "Pixels"])
        for number, (image, label, split) in enumerate(zip(images, labels, splits)):
            spelling = split.lower() if lower else f" {split} "
            writer.writerow([number, spelling, label, f" {text_of(image)}"])
    faces = read_csv(path)
    np.testing.assert_array_equal(faces.images, images)
    np.testing.assert_array_equal(faces.labels, labels)
    assert faces.split.tolist() == splits


def test_many_rows_and_odd_spaces(tmp_path):
    images, labels, splits = some_faces(300)
    rows = [f"{label},{text_of(i)},{split}" for i, label, split in zip(images, labels, splits)]
    rows[200] = rows[200].replace(" ", "  ", 3)
    rows.insert(5, "")
    faces = read_csv(write(tmp_path / "fer.csv", FULL, [*rows, "", " "]))
    np.testing.assert_array_equal(faces.images, images)


def test_class_names_widen_the_labels(tmp_path):
    path = write(tmp_path / "c.csv", "emotion,pixels", ["7,1 2 3 4", "0,1 2 3 4"])
    refused(path, "row 2", "emotion is '7'", "0 to 6", "--class_names")
    names = (*EMOTIONS, "contempt")
    faces = read_csv(path, class_names=names)
    assert faces.labels.tolist() == [7, 0]
    assert faces.class_names == names


def test_challenge_files(tmp_path):
    images, labels, _ = some_faces()
    train = [f"{label},{text_of(image)}" for image, label in zip(images[:4], labels)]
    write(tmp_path / "train.csv", "emotion,pixels", train)
    write(tmp_path / "test.csv", "pixels", [text_of(image) for image in images[4:]])
    both = locate(tmp_path).read(5, 1, ())
    order = np.argsort(both.split == "PrivateTest", kind="stable")
    np.testing.assert_array_equal(both.images[order], images)
    assert both.labels[order].tolist() == [*labels[:4], UNLABELED, UNLABELED]
    assert both.counts() == {"Training": 4, "PrivateTest": 2}
    assert read_csv(tmp_path / "train.csv").counts() == {"Training": 4}
    test = read_csv(tmp_path / "test.csv")
    assert test.counts() == {"PrivateTest": 2}
    assert (test.labels == UNLABELED).all()


def test_a_full_csv_comes_before_the_challenge_files(tmp_path):
    write(tmp_path / "train.csv", "emotion,pixels", ["0,1 2 3 4"])
    write(tmp_path / "test.csv", "pixels", ["1 2 3 4"])
    write(tmp_path / "example_submission.csv", "emotion", ["0"])
    write(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", ["3,Training,1 2 3 4"])
    assert locate(tmp_path).paths == (tmp_path / "icml_face_data.csv",)


def test_two_csvs_of_one_kind_are_refused(tmp_path):
    write(tmp_path / "train.csv", "emotion,pixels", ["0,1 2 3 4"])
    write(tmp_path / "train (1).csv", "emotion,pixels", ["0,1 2 3 4"])
    with pytest.raises(DataError, match=r"several CSVs of Training faces.*--data"):
        locate(tmp_path)


def test_another_width(tmp_path):
    path = write(tmp_path / "fer.csv", FULL, full_rows())
    faces = load_dataset(find_source(str(path)), width=8, channels=3, cache=tmp_path / "cache")
    assert faces.images.shape == (6, 8, 8)


ROW = "3,1 2 3 4,Training"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("3,1 2 3,Training", "3 pixels, where the rows before have 4"),
        ("3,1 2 3 4 5 6 7 8 9,Training", "9 pixels, where"),
        ("3,,Training", "0 pixels"),
        ("3,1 2 3 256,Training", "pixel 4 is '256'"),
        ("3,1 -2 3 4,Training", "pixel 2 is '-2'"),
        ("3,1 2.0 3 4,Training", "pixel 2 is '2.0'"),
        ("3,1 2 x 4,Training", "pixel 3 is 'x'"),
        ("3,1 2 3 4\u00e9,Training", "pixel 4 is '4\u00e9'"),
        ("3,1 2 3 0004,Training", "pixel 4 is '0004'"),
        ("3,1 2 3 " + "9" * 5000 + ",Training", "pixel 4 is '999"),
        ("7,1 2 3 4,Training", "emotion is '7', not a whole number from 0 to 6"),
        ("cat,1 2 3 4,Training", "'cat', not a whole number from 0 to 6 (write the number of"),
        ("-1,1 2 3 4,Training", "emotion is '-1'"),
        ("happy,1 2 3 4,Training", "emotion is 'happy'"),
        (",1 2 3 4,Training", "emotion is ''"),
        ("3.5,1 2 3 4,Training", "emotion is '3.5'"),
        ("3,1 2 3 4,Trainning", "Usage is 'Trainning', not one of Training, PublicTest"),
        ("3,1 2 3 4,", "Usage is ''"),
        ("3,1 2 3 4", "2 fields, where the header has 3"),
        ("3,1 2 3 4,Training,", "4 fields, where the header has 3"),
        ("3,1 2 \0 4,Training", "NUL"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, fault):
    path = write(tmp_path / "fer.csv", FULL, [ROW, "", ROW, row, "8,worse,too"])
    refused(path, "row 5: ", fault, "mend or remove the row")


def test_the_first_wrong_row_is_named_far_down(tmp_path):
    rows = [ROW] * 1000
    rows[700], rows[701] = "3,1 2 3 4,Other", "3,1 2 3,Training"
    refused(write(tmp_path / "fer.csv", FULL, rows), "row 702: ", "'Other'")


def test_no_square(tmp_path):
    path = write(tmp_path / "fer.csv", FULL, ["3,1 2 3,Training"] * 3)
    refused(path, "row 2: ", "3 pixels, which is not a square (48 x 48 is 2304)")


@pytest.mark.parametrize(
    ("content", "fault", "remedy"),
    [
        (b"", "is empty", "name the columns"),
        (b"\n\n", "is empty", "name the columns"),
        (b"emotion,pixels,Usage\n", "has a header but no rows", "bring the whole file"),
        (b"emotion,pixels,Usage\n \n\n", "has a header but no rows", "bring the whole file"),
        (b"0,1 2 3 4,Training\n", "has no header: row 1 is data", "name the columns"),
        (b"label,image\n0,1 2 3 4\n", "row 1 is 'label,image'", "name the columns"),
        (b"emotion,pixels,pixels\n", "is not a CSV of faces", "name the columns"),
        (f"{FULL}\n{ROW}\n".encode("utf-16"), "is UTF-16", "save it as UTF-8"),
        (f"{FULL}\n{ROW}\n".encode("utf-16-le"), "is UTF-16", "save it as UTF-8"),
        (f"{FULL}\r{ROW}\r".encode(), "old Mac", "Unix (LF)"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is not a CSV of faces", "name the columns"),
    ],
)
def test_no_csv_of_faces(tmp_path, content, fault, remedy):
    path = tmp_path / "fer.csv"
    path.write_bytes(content)
    refused(path, fault, remedy)


def test_a_cut_off_file_says_so(tmp_path):
    path = tmp_path / "fer.csv"
    path.write_text("\n".join([FULL, ROW, ROW[:7]]))
    refused(path, "row 3: it has 2 fields", "fetch the file anew", "seems cut off", "35,887 rows")
    path.write_text("\n".join([FULL, ROW, "9" + ROW, ""]))
    with pytest.raises(DataError, match=r"row 3: its emotion is '93'[^.]*$"):
        read_csv(path)


SMALL = "\n".join([FULL, *full_rows(4, 3), ""]).encode()
LAST_PIXELS = b"emotion,pixels\n0,11 22 33 44\n1,55 66 77 188\n"


def test_every_cut_is_found_or_harmless(tmp_path):
    """A cut between two rows cannot be seen; any other is an error, or loses the line end only."""
    path = tmp_path / "fer.csv"
    path.write_bytes(SMALL)
    whole = read_csv(path)
    for end in range(len(SMALL)):
        path.write_bytes(SMALL[:end])
        rows = SMALL[:end].count(b"\n") - 1
        try:
            faces = read_csv(path)
        except DataError:
            continue
        rows += not SMALL[:end].endswith(b"\n")
        assert SMALL[end : end + 1] == b"\n" or SMALL[:end].endswith(b"\n")
        assert len(faces) == rows
        np.testing.assert_array_equal(faces.images, whole.images[:rows])
        np.testing.assert_array_equal(faces.labels, whole.labels[:rows])


def test_a_cut_within_the_last_pixel_is_a_warning(tmp_path, capsys):
    """Where `pixels` is the last column, a shorter last number is a number still."""
    path = tmp_path / "train.csv"
    path.write_bytes(LAST_PIXELS[:-2])
    assert read_csv(path).images[-1, 1, 1] == 18
    assert "train.csv has no line end after its last row: cut off?" in capsys.readouterr().err
    path.write_bytes(LAST_PIXELS)
    assert read_csv(path).images[-1, 1, 1] == 188
    assert not capsys.readouterr().err


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_give_faces_or_a_data_error(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from([SMALL, LAST_PIXELS])))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        faces = read_csv(path)
        assert faces.images.dtype == np.uint8
        assert faces.images.shape[1] == faces.images.shape[2]
        assert len(faces.images) == len(faces.labels) == len(faces.split)
        assert ((faces.labels >= UNLABELED) & (faces.labels < 7)).all()
        assert set(faces.split) <= set(SPLITS)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1, max_size=5))
def test_pixels_are_what_int_says(rows):
    texts = [" ".join(map(str, row)).encode() for row in rows]
    assert parse_pixels(texts).tolist() == rows


@settings(deadline=None)
@given(st.lists(st.text("0129 -x\t", min_size=1, max_size=12), min_size=1, max_size=4))
def test_pixels_are_what_split_says_or_refused(rows):
    with contextlib.suppress(ValueError):
        parsed = parse_pixels([row.encode() for row in rows])
        assert parsed.tolist() == [[int(v) for v in row.split(" ")] for row in rows]


def test_the_real_fer2013(tmp_path):
    if not FER2013.is_dir():
        pytest.skip(f"the real faces are not at {FER2013}")
    path = tmp_path / "fer2013.csv"
    subprocess.run([sys.executable, FER2013 / "make_csv.py", path], check=True)
    sys.path.insert(0, str(FER2013))
    try:
        from make_csv import load_pixels  # noqa: PLC0415
    finally:
        sys.path.remove(str(FER2013))
    with open(FER2013 / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    source, pixels = find_source(str(path)), load_pixels()
    for _ in range(2):  # parsed, then from the cache
        faces = load_dataset(source, cache=tmp_path / "cache")
        np.testing.assert_array_equal(faces.images, pixels)
        assert faces.labels.tolist() == [int(row["emotion"]) for row in rows]
        assert faces.split.tolist() == [row["Usage"] for row in rows]
        assert faces.class_names == EMOTIONS
        assert faces.source == str(path)
    (stored,) = (tmp_path / "cache").iterdir()
    assert stored.stat().st_size > faces.images.nbytes
