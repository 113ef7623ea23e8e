"""Where samples come from: sources, decoding, patient-level splits, WebDataset shards with grid metadata."""
