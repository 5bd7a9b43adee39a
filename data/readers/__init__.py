"""Readers of data-set layouts, one file per layout. Nothing here decides which data set is used."""
