"""Every test, and every script that a test starts, keeps its cache apart and stays off the network.

Set before anything of the project is imported, because data.cache reads it then.
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

# A shell that starts the tests in the background (`bash tests/run.sh &`) has them, and all that
# they start, ignore Ctrl-C, which some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run; `pytest --hypothesis-profile=long` draws many new ones.
settings.register_profile("short", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=3000, deadline=None)
settings.load_profile("short")


@pytest.fixture(scope="session")
def astronaut():
    return photographs.astronaut()


@pytest.fixture(scope="session")
def hopper():
    from data.readers.folders import read_image  # noqa: PLC0415  (of the project, see above)

    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return read_image(Path(path), 3)


@pytest.fixture(scope="session")
def both(astronaut, hopper):
    """The two side by side."""
    scale = 512 / hopper.shape[0]
    resized = cv2.resize(hopper, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.hstack([astronaut, resized[:512]])


@pytest.fixture
def echo(monkeypatch):
    """Let FacePredictor have a network that reads happy faces and echoes their corners."""
    from photos import Echo  # noqa: PLC0415

    monkeypatch.setattr("inference.predictor.load_runtime", lambda *args: Echo())
