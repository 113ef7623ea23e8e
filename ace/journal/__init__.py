"""A training reports itself here: rows of numbers, loggers, Dagster, the model card; nothing decides a weight."""
