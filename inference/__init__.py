"""Prediction on photographs and videos. Training and evaluation belong in engine/."""
