"""Readers of FER2013 in every layout, landmarks, augmentation, and the synthetic sample."""
