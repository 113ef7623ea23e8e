"""The authors' published checkpoints as model folders of this project."""
