"""What the training costs, measured: python -m benchmarks.throughput, python -m benchmarks.data."""
