"""What training, reading and inference cost: python -m benchmarks.throughput, .data, .inference."""
