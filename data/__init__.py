"""Data sets: readers, landmarks, augmentation, loading. Nothing here knows the network."""
