"""The `trl` trainer in functions of Modal: an epoch a call, through the store."""
