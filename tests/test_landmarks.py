"""The 68 landmarks: right on photographs, found once, and kept through every interruption."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import landmarks
from data.dataset import FaceDataset, resize_landmarks
from data.landmarks import FLIP, add_landmarks
from utils.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "fer2013"
MODEL = "face_recognition_models/models/shape_predictor_68_face_landmarks.dat"

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("dlib") and importlib.util.find_spec("face_recognition_models")),
    reason="dlib-bin or face-recognition-models is not installed",
)
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def faces_of(images: np.ndarray) -> FaceDataset:
    n = len(images)
    return FaceDataset(
        np.asarray(images), np.zeros(n, np.int64), np.full(n, "Training"), source="test"
    )


def photographs() -> list[tuple[np.ndarray, tuple[float, float], float]]:
    """Return (RGB photograph, centre of the face, width of its landmarks) of two people."""
    skimage_data = pytest.importorskip("skimage.data")
    cbook = pytest.importorskip("matplotlib.cbook")
    hopper = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return [
        (skimage_data.astronaut(), (221, 123), 90),
        (np.ascontiguousarray(hopper[:, :, ::-1]), (275, 240), 190),
    ]


def crops(n: int, width: int = 48, colour: bool = False) -> np.ndarray:
    """Return n different crops around the two faces: uint8 [n, width, width(, 3)]."""
    random, photos, out = np.random.default_rng(0), photographs(), []
    for i in range(n):
        image, centre, face = photos[i % 2]
        size = round(face * random.uniform(1.15, 1.45))
        shift = random.uniform(-0.05, 0.05, 2) * size
        left, top = np.round(np.array(centre) - size / 2 + shift).astype(int)
        crop = image[top : top + size, left : left + size]
        crop = crop if colour else cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        shrinks = size > width
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        out.append(cv2.resize(crop, (width, width), interpolation=interpolation))
    return np.stack(out)


def blank(n: int) -> np.ndarray:
    """Return n faceless images, all different."""
    return np.stack([np.full((48, 48), i % 256, dtype=np.uint8) for i in range(n)])


@pytest.fixture(autouse=True)
def model_stays_loaded(monkeypatch):
    """Let this process load dlib's 100 MB once, not once in each test."""
    real = landmarks._dlib

    class Kept:
        __call__ = staticmethod(real)
        cache_clear = staticmethod(lambda: None)

    monkeypatch.setattr(landmarks, "_dlib", Kept())
    return real


@pytest.fixture
def searched(monkeypatch) -> list[int]:
    """Small blocks, and a list that gets an entry for every face that dlib looks at."""
    calls, find = [], landmarks._find
    monkeypatch.setattr(landmarks, "BLOCK", 4)
    monkeypatch.setattr(landmarks, "_find", lambda *a: calls.append(1) or find(*a))
    return calls


# --- The points -----------------------------------------------------------------------


def test_flip_swaps_left_and_right():
    assert FLIP.dtype == np.int64
    assert sorted(FLIP) == list(range(68))
    assert (FLIP[FLIP] == np.arange(68)).all()
    regions = {
        (0, 17): (0, 17),  # jaw
        (17, 22): (22, 27),  # brows
        (27, 31): (27, 31),  # bridge of the nose
        (31, 36): (31, 36),
        (36, 42): (42, 48),  # eyes
        (48, 60): (48, 60),  # outer lips
        (60, 68): (60, 68),
    }
    for (a, b), (c, d) in regions.items():
        assert set(FLIP[a:b]) == set(range(c, d))
        assert set(FLIP[c:d]) == set(range(a, b))
    middle = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    assert [i for i in range(68) if FLIP[i] == i] == middle
    for a, b in [(0, 16), (17, 26), (36, 45), (37, 44), (39, 42), (41, 46), (48, 54), (60, 64)]:
        assert FLIP[a] == b


def test_landmarks_lie_where_the_face_has_them(tmp_path):
    """On 48 px, against the points that dlib finds in the same crops at 192 px."""
    found = add_landmarks(faces_of(crops(60)), tmp_path, jobs=1, progress=False)
    large = add_landmarks(faces_of(crops(60, 192)), tmp_path, jobs=1, progress=False)
    assert found.landmarks.shape == (60, 68, 2)
    assert found.landmarks.dtype == np.float32
    assert found.has_landmarks.mean() > 0.9
    both = found.has_landmarks & large.has_landmarks
    small = found.landmarks[both]
    difference = small - resize_landmarks(large.landmarks[both], (192, 192), 48)
    assert np.linalg.norm(difference, axis=-1).mean() < 0.8  # pixels
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.2  # no shift of half a pixel
    eyes, tip, mouth, chin = small[:, 36:48], small[:, 30], small[:, 48:68], small[:, 8]
    assert (eyes[:, :6, 0].mean(1) + 8 < eyes[:, 6:, 0].mean(1)).all()
    heights = np.stack([eyes.mean(1), tip, mouth.mean(1), chin])[..., 1]
    assert (np.diff(heights, axis=0) > 2).all()


def test_a_mirrored_face_has_mirrored_landmarks(tmp_path):
    images = crops(40)
    straight = add_landmarks(faces_of(images), tmp_path, jobs=1, progress=False)
    mirrored = add_landmarks(faces_of(images[:, :, ::-1]), tmp_path, jobs=1, progress=False)
    back = mirrored.landmarks[:, FLIP] * np.float32([-1, 1]) + np.float32([47, 0])
    both = straight.has_landmarks & mirrored.has_landmarks
    assert both.mean() > 0.8
    distance = np.linalg.norm(back - straight.landmarks, axis=-1)[both]
    assert distance.mean() < 0.8  # pixels; 8 with the points not swapped
    assert np.linalg.norm(mirrored.landmarks - straight.landmarks, axis=-1)[both].mean() > 3


@pytest.mark.parametrize("width", [32, 48, 96, 150])
def test_colour_and_other_widths(tmp_path, width):
    colour = add_landmarks(faces_of(crops(8, width, colour=True)), tmp_path, 1, progress=False)
    grey = add_landmarks(faces_of(crops(8, width)), tmp_path, 1, progress=False)
    both = colour.has_landmarks & grey.has_landmarks
    assert both.mean() > 0.5
    assert np.abs(colour.landmarks - grey.landmarks)[both].mean() < width / 48


def test_no_face_gives_nan_and_no_faces_give_none(tmp_path, capsys):
    images = np.concatenate([blank(3), crops(1)])
    found = add_landmarks(faces_of(images), tmp_path, jobs=1)
    assert found.has_landmarks.tolist() == [False, False, False, True]
    assert np.isnan(found.landmarks[:3]).all()
    assert "landmarks: found in 1 of 4 faces (25.0 %), " in capsys.readouterr().out
    empty = add_landmarks(faces_of(images[:0]), tmp_path)
    assert empty.landmarks.shape == (0, 68, 2)
    assert "found in 0 of 0 faces (0.0 %)" in capsys.readouterr().out


def test_landmarks_that_the_layout_brought_stay(tmp_path, searched):
    faces = replace(faces_of(blank(2)), landmarks=np.ones((2, 68, 2), np.float32))
    assert add_landmarks(faces, tmp_path) is faces
    assert not searched
    assert not list(tmp_path.iterdir())


def test_found_share_of_fer2013(tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"the real faces are not at {SHARED}")
    sys.path.insert(0, str(SHARED))
    try:
        import make_csv  # noqa: PLC0415
    finally:
        sys.path.remove(str(SHARED))
    images = make_csv.load_pixels()[::90]
    share = add_landmarks(faces_of(images), tmp_path, progress=False).has_landmarks.mean()
    assert 0.6 < share < 0.8


# --- The cache ------------------------------------------------------------------------


def test_each_block_is_searched_once(tmp_path, searched, capsys):
    faces = faces_of(np.concatenate([crops(7), blank(3)]))
    first = add_landmarks(faces, tmp_path, jobs=1)
    assert len(searched) == 10
    assert "(cached)" not in capsys.readouterr().out
    again = add_landmarks(faces, tmp_path, jobs=1)
    assert len(searched) == 10
    assert "%) (cached)" in capsys.readouterr().out
    np.testing.assert_array_equal(again.landmarks, first.landmarks)
    # Another order of the same blocks, and more faces after them, search only what is new.
    more = faces_of(np.concatenate([faces.images[4:8], faces.images[:4], blank(9)[5:]]))
    add_landmarks(more, tmp_path, jobs=1, progress=False)
    assert len(searched) == 14


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped", "other"])
def test_a_damaged_block_alone_is_made_anew(tmp_path, searched, damage):
    faces = faces_of(np.concatenate([crops(8), blank(4)]))
    first = add_landmarks(faces, tmp_path, jobs=1, progress=False)
    file = sorted((tmp_path / "landmarks").glob("*.npz"))[0]
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "gone":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    else:
        np.savez(file, landmarks=np.zeros((3, 68, 2), np.float32))
    searched.clear()
    again = add_landmarks(faces, tmp_path, jobs=1, progress=False)
    assert len(searched) == 4
    np.testing.assert_array_equal(again.landmarks, first.landmarks)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_one_warning(tmp_path, searched, capsys):
    (tmp_path / "file").touch()
    found = add_landmarks(faces_of(crops(9)), tmp_path / "file", jobs=1, progress=False)
    assert found.has_landmarks.any()
    assert len(searched) == 9
    assert capsys.readouterr().err.count("warning:") == 1


# --- Missing and damaged tools --------------------------------------------------------


def test_without_dlib(tmp_path, monkeypatch, model_stays_loaded):
    monkeypatch.setitem(sys.modules, "dlib", None)
    model_stays_loaded.cache_clear()
    with pytest.raises(DataError, match="dlib is not installed.*pip install.*--no_landmarks"):
        add_landmarks(faces_of(crops(1)), tmp_path, jobs=1, progress=False)


def test_without_the_models_package(tmp_path, monkeypatch):
    monkeypatch.setattr(landmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install.*face-recognition-models.*--no_landmarks"):
        add_landmarks(faces_of(crops(1)), tmp_path, jobs=1, progress=False)


@pytest.mark.parametrize(
    ("content", "jobs"), [(None, 1), (b"", 1), ("cut", 1), ("cut", 2), (b"version https://", 1)]
)
def test_with_a_damaged_model(tmp_path, monkeypatch, content, jobs):
    spec = importlib.util.find_spec("face_recognition_models")
    real = Path(spec.submodule_search_locations[0]).parent / MODEL
    fake = tmp_path / MODEL
    fake.parent.mkdir(parents=True)
    (fake.parents[1] / "__init__.py").touch()
    if content == "cut":
        with open(real, "rb") as file:
            content = file.read(2_000_000)
    if content is not None:
        fake.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(landmarks, "BLOCK", 4)
    message = "cannot be read" if content is None else "is damaged"
    with pytest.raises(DataError, match=f"{fake.name}.*{message}.*pip install"):
        add_landmarks(faces_of(crops(8)), tmp_path, jobs=jobs, progress=False)


# --- Several processes, and their ends ------------------------------------------------

SCRIPT = """
import sys
import numpy as np
from data import landmarks
from tests.test_landmarks import faces_of
from utils.errors import run_main

def main():
    images, cache, jobs, out = sys.argv[1:]
    landmarks.BLOCK = 16
    found = landmarks.add_landmarks(faces_of(np.load(images)), cache, int(jobs))
    assert "torch" not in sys.modules
    np.save(out, found.landmarks)

run_main(main)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A file of 640 faces: some 1.5 s of work for one process."""
    file = tmp_path_factory.mktemp("faces") / "images.npy"
    np.save(file, crops(640))
    return file


@pytest.fixture(scope="module")
def undisturbed(many) -> np.ndarray:
    out = many.with_name("undisturbed.npy")
    process = start(many, many.parent, 2, out)
    assert process.wait(60) == 0, process.stderr.read()
    return np.load(out)


def start(images: Path, cache: Path, jobs: int, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(images), str(cache), str(jobs), str(out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as a shell does, so that Ctrl-C reaches the whole group
    )


def started_and_kept_something(process: subprocess.Popen, cache: Path) -> int:
    """Wait for the first blocks in the cache; return how many there are."""
    for _ in range(3000):
        if n := len(list(cache.glob("landmarks/*.npz"))):
            return n
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("nothing was kept within 30 s")


def session(leader: int) -> dict[int, str]:
    """Return the processes of a session that still run, and their commands."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == leader and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it ended meanwhile
            continue
    return found


def assert_all_end(leader: int) -> None:
    for _ in range(100):
        if not session(leader):
            return
        time.sleep(0.1)
    left = session(leader)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"still running after 10 s: {left}")


def test_two_processes_find_what_one_does(many, undisturbed):
    some = faces_of(np.load(many)[:100])
    alone = add_landmarks(some, many.with_name("alone"), jobs=1, progress=False)
    np.testing.assert_array_equal(alone.landmarks, undisturbed[:100])


def test_two_runs_at_once_share_a_cache(tmp_path, many, undisturbed):
    outs = [tmp_path / f"{i}.npy" for i in range(2)]
    runs = [start(many, tmp_path, 1, out) for out in outs]
    for run, out in zip(runs, outs):
        assert run.wait(60) == 0, run.stderr.read()
        np.testing.assert_array_equal(np.load(out), undisturbed)
    files = {file.name: file.read_bytes() for file in (tmp_path / "landmarks").iterdir()}
    assert len(files) == 40
    for file in (many.parent / "landmarks").glob("*.npz"):
        assert files[file.name] == file.read_bytes()


@linux
def test_a_killed_run_goes_on_where_it_was(tmp_path, many, undisturbed, monkeypatch):
    process = start(many, tmp_path, 2, tmp_path / "out.npy")
    started_and_kept_something(process, tmp_path)
    process.kill()
    process.wait()
    assert_all_end(process.pid)  # the workers too
    kept = len(list((tmp_path / "landmarks").glob("*.npz")))
    assert 0 < kept < 40
    blocks, search = [], landmarks._search
    monkeypatch.setattr(landmarks, "BLOCK", 16)
    monkeypatch.setattr(landmarks, "_search", lambda *a: blocks.append(1) or search(*a))
    resume_options = add_landmarks(faces_of(np.load(many)), tmp_path, jobs=1, progress=False)
    assert len(blocks) == 40 - kept
    np.testing.assert_array_equal(resume_options.landmarks, undisturbed)


@linux
def test_ctrl_c_ends_at_once_and_quietly(tmp_path, many):
    process = start(many, tmp_path, 2, tmp_path / "out.npy")
    started_and_kept_something(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(5) == 130
    assert_all_end(process.pid)
    text = process.stderr.read()
    assert "interrupted" in text
    assert "Traceback" not in text
    assert "Warning" not in text


@linux
def test_a_worker_that_the_system_ends_is_an_error_with_a_remedy(tmp_path, many):
    process = start(many, tmp_path, 2, tmp_path / "out.npy")
    started_and_kept_something(process, tmp_path)
    workers = [pid for pid, command in session(process.pid).items() if "popen_loky" in command]
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(10) == 1
    assert_all_end(process.pid)
    text = process.stderr.read()
    assert "error: the system ended a process" in text
    assert "Traceback" not in text


def test_import_needs_no_dlib_and_no_torch():
    code = (
        "import sys; sys.modules['dlib'] = None; import data.landmarks;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
