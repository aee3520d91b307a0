"""Room in the store: what takes it, what may be deleted, and whether what is kept is sound."""
