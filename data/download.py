"""Download of FER2013 from Kaggle, if the network permits it within seconds."""

import os
import sys
from pathlib import Path

from utils.internet import is_reachable

KAGGLE_SET = "msambare/fer2013"
KAGGLE_URL = f"https://www.kaggle.com/datasets/{KAGGLE_SET}"


def download() -> Path | None:
    """Return the folder of Kaggle's public copy of FER2013, or None if it is not available.

    A complete earlier download is used as it is. `FER_OFFLINE=1` in the environment disables both.
    """
    if os.environ.get("FER_OFFLINE", "0") not in ("", "0"):
        return None
    cache = os.environ.get("KAGGLEHUB_CACHE") or os.path.expanduser("~/.cache/kagglehub")
    folder = Path(cache, "datasets", KAGGLE_SET)
    complete = [int(mark.stem) for mark in folder.glob("*.complete") if mark.stem.isdigit()]
    newest = folder / "versions" / str(max(complete, default=0))
    if newest.is_dir():
        return newest
    if not is_reachable(KAGGLE_URL):  # kagglehub itself would wait long
        return None
    try:
        import kagglehub  # noqa: PLC0415  (only needed for a download)

        print(f"Downloading FER2013 ({KAGGLE_SET}, 60 MB) from Kaggle", file=sys.stderr)
        return Path(kagglehub.dataset_download(KAGGLE_SET))
    except Exception as error:  # the synthetic data set is used instead
        print(f"warning: the download from Kaggle failed: {error}", file=sys.stderr)
        return None
