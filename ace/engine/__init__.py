"""The engine holds what every training shares: processes, loop, checkpoints, run folder; it knows no networks."""
