"""Fixtures of all tests. Tests, and the scripts that they start, have a cache of their own and no
network.

The environment is set before the project is imported, because data.cache reads it then.
"""

import atexit
import os
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import settings
from matplotlib import cbook
from skimage import data as photographs

_cache = tempfile.mkdtemp(prefix="fer-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["FER_CACHE"] = _cache
os.environ["FER_OFFLINE"] = "1"

# A shell that starts the tests in the background makes them, and the processes that they start,
# ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run; `pytest --hypothesis-profile=long` draws many new ones.
settings.register_profile("short", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=3000, deadline=None)
settings.load_profile("short")

QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", *QUIET]


@pytest.fixture(scope="session")
def astronaut():
    """A photograph of one face, uint8 [512, 512, 3] in RGB."""
    return photographs.astronaut()


@pytest.fixture(scope="session")
def hopper():
    """A photograph of one face in RGB."""
    from data.readers.images import read_image  # noqa: PLC0415  (after the environment is set)

    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return read_image(Path(path), 3)


@pytest.fixture(scope="session")
def both(astronaut, hopper):
    """Both photographs in one image, the astronaut on the left."""
    scale = 512 / hopper.shape[0]
    resized = cv2.resize(hopper, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.hstack([astronaut, resized[:512]])


@pytest.fixture(scope="module")
def chromium():
    """Return a function that starts Chromium with further flags."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    if not (path := next(found, None)):
        pytest.skip("needs a Chromium, such as by apt install chromium")
    with driver.sync_playwright() as playwright:
        yield lambda *flags: playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])


@pytest.fixture
def small_sample(monkeypatch):
    """Let `--data sample` have 91 images."""
    from data.synthetic import generate  # noqa: PLC0415

    small = partial(generate.synthetic_dataset, training=7, public=3, private=3)
    monkeypatch.setattr(generate, "synthetic_dataset", small)


@pytest.fixture
def constant_runtime(monkeypatch):
    """Give FacePredictor a network that predicts happy, and landmarks at the corners of a crop."""
    from photos import ConstantRuntime  # noqa: PLC0415

    monkeypatch.setattr("inference.predictor.load_runtime", lambda *args: ConstantRuntime())


@pytest.fixture(scope="session", autouse=True)
def save_figure():
    """Let figures be made, but not drawn, which would take most of the time of a tiny run.

    Its value is the function that draws them, see `drawn_figures`.
    """
    from utils import figures  # noqa: PLC0415

    draw = figures.save_figure
    blank = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()

    def save_blank(figure, file):
        file.write_bytes(blank) if isinstance(file, Path) else file.write(blank)

    with pytest.MonkeyPatch.context() as context:
        context.setattr("utils.figures.save_figure", save_blank)
        yield draw


@pytest.fixture
def drawn_figures(monkeypatch, save_figure):
    """Draw figures in this test."""
    monkeypatch.setattr("utils.figures.save_figure", save_figure)


@pytest.fixture(scope="session")
def faces_csv(tmp_path_factory):
    """Return a CSV of 91 synthetic images: 7 of each class for training, 3 for each test set."""
    from kills import write_csv  # noqa: PLC0415

    from data.synthetic.generate import synthetic_dataset  # noqa: PLC0415

    dataset = synthetic_dataset(training=7, public=3, private=3)
    return write_csv(dataset, tmp_path_factory.mktemp("data") / "faces.csv")


@pytest.fixture(scope="session")
def reference(faces_csv, tmp_path_factory):
    """Return the folder of an uninterrupted run with TINY: 3 epochs of 4 batches."""
    from test_faults import TINY, run  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("runs") / "reference"
    run("--data", faces_csv, "--out", folder, *TINY)
    return folder
