"""Shards made into batches of crop pairs and views: windows, resampling, photometric augmentation, sampling order."""
