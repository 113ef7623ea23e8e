"""explorer.html: one offline page in which the anatomy of other patients answers to a pointer."""
