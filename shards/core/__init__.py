"""Shared language of all of shards: errors, params, records, grid, canvas, identity."""
