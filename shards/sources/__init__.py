"""Sources: raw datasets as records; the contract that all of them keep."""
