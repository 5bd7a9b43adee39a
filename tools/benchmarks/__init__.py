"""What training, reading and inference cost, and how wide to cut faces out of photographs:
python -m tools.benchmarks.throughput, .data, .inference and .margin."""
