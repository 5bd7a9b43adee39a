"""Trunks, the two-headed network, the SCN losses, and checkpoints."""
