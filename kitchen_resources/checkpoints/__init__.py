"""Checkpoints: the store, the lease, and what is kept."""
