"""The datasets: one module for each, and for your own folders and DICOM archives."""
