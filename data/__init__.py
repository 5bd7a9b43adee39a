"""Data sets: readers, landmarks, augmentation, loading. Nothing here depends on the models."""
