"""Parts that architectures share and that are not device operations: position tables."""
