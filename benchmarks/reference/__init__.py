"""Plain implementations that the benchmarks compare ours with; not for use."""
