"""Global consistency and matrix matching, as pure functions on tensors (method.md §4)."""
