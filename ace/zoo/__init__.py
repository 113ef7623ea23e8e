"""Trained models that come with the package, one folder each, and the command that makes such a folder."""
