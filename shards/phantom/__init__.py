"""The built-in dataset: radiographs of one scanned chest, warped into many virtual patients."""
