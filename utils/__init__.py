"""Metrics, figures, the run folder, devices: what knows neither the data nor the models."""
