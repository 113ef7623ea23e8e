"""Where the files of a set lie: a local folder, or a server behind a cache."""
