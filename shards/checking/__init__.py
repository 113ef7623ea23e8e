"""The commands that look at finished sets: verify and repair, stats, show, gallery; and exclude."""
