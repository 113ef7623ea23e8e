"""Turn the grid's integers into tensors: overlap masks and correspondence targets (method.md §1–2)."""
