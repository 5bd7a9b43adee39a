"""Fixtures of all tests. Tests, and the scripts that they start, have a cache of their own and no
network.

The environment is set before the project is imported, because data.cache reads it then.
"""

import atexit
import os
import shutil
import signal
import tempfile
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
def constant_runtime(monkeypatch):
    """Give FacePredictor a network that predicts happy, and landmarks at the corners of a crop."""
    from photos import ConstantRuntime  # noqa: PLC0415

    monkeypatch.setattr("inference.predictor.load_runtime", lambda *args: ConstantRuntime())
