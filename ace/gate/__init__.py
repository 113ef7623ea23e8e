"""The gate: rules by which a new model takes the place of the accepted one, or does not."""
