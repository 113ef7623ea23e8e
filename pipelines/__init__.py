"""When and why things run: Dagster assets derived from the DVC graph. The only package that imports dagster."""
