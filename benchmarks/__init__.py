"""What training, reading and inference cost, and how wide to cut faces out of photographs:
python -m benchmarks.throughput, .data, .inference and .margin."""
