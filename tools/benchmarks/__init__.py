"""Benchmarks of training and inference.

Run them as modules, such as `python -m tools.benchmarks.throughput`.
"""
