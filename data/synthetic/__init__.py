"""The synthetic data set: faces rendered in code, with exact landmarks. No real images."""
