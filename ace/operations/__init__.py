"""Accepted models: which one serves, who decided so and when, and how each step can be shown afterwards."""
