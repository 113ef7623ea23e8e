"""The properties that embeddings are measured for: one file each, and one line each in `registry.py`."""
