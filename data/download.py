"""Download of FER2013 from Kaggle, if the network permits it within seconds."""

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
    """Return the folder of Kaggle's public copy of FER2013, or None if it is not available.

    A complete earlier download is used as it is. `FER_OFFLINE=1` in the environment disables both.
    Failures are warnings.
    """
    if os.environ.get("FER_OFFLINE", "0") not in ("", "0"):
        return None
    if folder := _earlier_download():
        return folder
    if not _is_reachable():  # kagglehub itself would wait long
        return None
    try:
        import kagglehub  # noqa: PLC0415  (only needed for a download)

        print(f"Downloading FER2013 ({KAGGLE_SET}, 60 MB) from Kaggle", file=sys.stderr)
        return Path(kagglehub.dataset_download(KAGGLE_SET))
    except Exception as error:  # the synthetic data set is used instead
        print(f"warning: the download from Kaggle failed: {error}", file=sys.stderr)
        return None


def _earlier_download() -> Path | None:
    """Return the newest version that kagglehub has marked as complete."""
    cache = os.environ.get("KAGGLEHUB_CACHE") or os.path.expanduser("~/.cache/kagglehub")
    folder = Path(cache) / "datasets" / KAGGLE_SET
    versions = [int(mark.stem) for mark in folder.glob("*.complete") if mark.stem.isdigit()]
    newest = folder / "versions" / str(max(versions, default=0))
    return newest if newest.is_dir() else None


def _is_reachable() -> bool:
    has_answered = threading.Event()

    def request() -> None:
        head = urllib.request.Request(KAGGLE_URL, method="HEAD")
        try:
            urllib.request.urlopen(head, timeout=PROBE_SECONDS).close()
            has_answered.set()
        except urllib.error.HTTPError:  # Kaggle rejects HEAD, but it has answered
            has_answered.set()
        except Exception:  # no network, no name server, or a proxy that refuses
            return

    # urlopen's timeout does not cover name resolution, so a thread waits for it.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return has_answered.is_set()
