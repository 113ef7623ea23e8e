"""Shards made into batches of crop pairs: windows, resampling, photometric augmentation, sampling order."""
