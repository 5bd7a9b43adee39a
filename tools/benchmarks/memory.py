"""How much memory a measurement took."""

import resource
import sys


def peak_memory() -> float:
    """Return the most memory that this process has had so far, in GB."""
    unit = 1e9 if sys.platform == "darwin" else 1e6  # kB, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
