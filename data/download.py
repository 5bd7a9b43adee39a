"""FER2013 from Kaggle, where the network allows it; never an error, and never a long wait."""

from __future__ import annotations

import os
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

KAGGLE_SET = "msambare/fer2013"
KAGGLE_URL = f"https://www.kaggle.com/datasets/{KAGGLE_SET}"
PROBE_SECONDS = 3


def download() -> Path | None:
    """Return the folder of the public Kaggle data set, or None where it cannot be had.

    An earlier download is taken as it is. `FER_OFFLINE=1` in the environment skips it all.
    """
    if os.environ.get("FER_OFFLINE", "0") not in ("", "0"):
        return None
    if earlier := _earlier_download():
        return earlier
    if not _reachable():  # kagglehub itself would try for long
        return None
    try:
        import kagglehub  # noqa: PLC0415  (only a download needs it)

        print(f"downloading FER2013 ({KAGGLE_SET}, 60 MB) from Kaggle", file=sys.stderr)
        return Path(kagglehub.dataset_download(KAGGLE_SET))
    except Exception as error:  # whatever it is, the user can do without
        print(f"warning: no download from Kaggle: {error}", file=sys.stderr)
        return None


def _earlier_download() -> Path | None:
    """Return the newest version that kagglehub has marked as complete."""
    cache = os.environ.get("KAGGLEHUB_CACHE") or os.path.expanduser("~/.cache/kagglehub")
    folder = Path(cache) / "datasets" / KAGGLE_SET
    versions = [int(mark.stem) for mark in folder.glob("*.complete") if mark.stem.isdigit()]
    newest = folder / "versions" / str(max(versions, default=0))
    return newest if newest.is_dir() else None


def _reachable() -> bool:
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(KAGGLE_URL, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            answered.set()
        except urllib.error.HTTPError:  # it refuses a program's HEAD, but it is there
            answered.set()
        except Exception:  # no network, no name server, a proxy that says no
            return

    # A name server's silence is under no timeout, so a thread that may be left behind asks.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()
