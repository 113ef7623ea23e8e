"""The commands that look at finished sets: verify and repair, statistics, contact sheet, gallery."""
