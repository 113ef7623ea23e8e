"""The stage shard: a manifest becomes tars, is judged as a whole, and is published as one set."""
