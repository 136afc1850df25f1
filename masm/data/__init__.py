"""Face data: where it comes from, how it is stored, checked and read."""
