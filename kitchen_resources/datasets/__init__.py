"""Data sets: where rows come from, and how they become tokens with loss weights."""
