"""What a training tells: rows of numbers, loggers, Dagster, the model card. Nothing here decides a weight."""
