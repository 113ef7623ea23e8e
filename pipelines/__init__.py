"""Run stages when it is time: Dagster assets derived from the DVC graph. No other package imports dagster."""
