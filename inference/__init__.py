"""Prediction on photographs and videos. Nothing here trains."""
