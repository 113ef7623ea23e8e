"""Sources: raw datasets as records."""
