"""A folder becomes a manifest: register, keyed ids, earlier batches, and the edits of params.yaml and dvc.yaml."""
