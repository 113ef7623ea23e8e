"""Keep the files of a set: a local folder, or a server behind a cache."""
