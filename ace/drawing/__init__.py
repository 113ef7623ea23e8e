"""Pictures and plots that fit the report: colours of encoders, data URIs, SVG."""
