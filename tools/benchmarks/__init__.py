"""Benchmarks of training, inference, the web page and explanations, and choices of constants.

Run them as modules, such as `python -m tools.benchmarks.throughput`.
"""
