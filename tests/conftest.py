"""Every test, and every script that a test starts, keeps its cache apart and stays off the network.

Set before anything of the project is imported, because data.cache reads it then.
"""

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import settings

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
