"""The network: backbones, heads, losses, checkpoints. Nothing here knows a data set."""
