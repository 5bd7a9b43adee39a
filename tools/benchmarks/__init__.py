"""Benchmarks of training and inference, and the choice of the crop margin.

Run them as modules, such as `python -m tools.benchmarks.throughput`.
"""
