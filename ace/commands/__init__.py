"""The commands of `python -m ace`: each module adds its own to the command line, and says in its first line which."""
