"""The `trl` trainer as jobs of a Ray cluster."""
