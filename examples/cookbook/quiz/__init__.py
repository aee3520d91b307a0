"""What is the cookbook's own: an adapter and an environment."""
