"""One self-contained page of what was trained, on what, and what it shows."""
