"""Every test, and every script that a test starts, keeps its cache apart and stays off the network.

Set before anything of the project is imported, because data.cache reads it then.
"""

import atexit
import os
import shutil
import tempfile

_cache = tempfile.mkdtemp(prefix="fer-cache-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["FER_CACHE"] = _cache
os.environ["FER_OFFLINE"] = "1"
