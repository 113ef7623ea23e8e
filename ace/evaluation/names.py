"""Names of figures in metrics/properties.json that several places look up."""

CORRESPONDENCE = "correspondence_px_at_1024"
PROBE = "probe_auroc"
