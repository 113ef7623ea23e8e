"""Give training its samples: sources, decoding, patient-level splits, WebDataset shards with grid metadata."""
