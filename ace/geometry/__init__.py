"""What tensors make of the grid's integers: overlap masks and correspondence targets (method.md §1–2)."""
