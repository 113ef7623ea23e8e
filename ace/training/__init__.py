"""The training loop, its schedules, its state on disk and what it logs."""
