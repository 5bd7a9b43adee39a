"""Training and evaluation. Networks are in `models`, data sets in `data`."""
