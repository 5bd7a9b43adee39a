"""Metrics, figures, the run folder, devices: what knows neither the data nor the models."""

import os
from importlib.util import find_spec

# A notebook asks every program that it starts to draw in it, and where the program's environment
# lacks what that takes, Matplotlib cannot even be imported.
if "inline" in os.environ.get("MPLBACKEND", "") and find_spec("matplotlib_inline") is None:
    del os.environ["MPLBACKEND"]
