"""Training: the port, its adapters, and the run that makes epochs exist."""
