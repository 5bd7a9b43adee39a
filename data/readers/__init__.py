"""Readers of data sets, one module per layout. Nothing here caches, augments or holds out."""
