"""Finished sets are read: the index, single samples, the order of an epoch, and what a model has seen."""
