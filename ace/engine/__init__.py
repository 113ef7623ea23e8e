"""What every training shares: processes, the loop, checkpoints, the run and its folder; it knows no networks."""
