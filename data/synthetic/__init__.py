"""The synthetic data set: the code that renders its images. Nothing here reads files."""
