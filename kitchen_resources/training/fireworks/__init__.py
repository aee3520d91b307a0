"""Fireworks: its Training SDK, by the kitchen's own loops, and its managed jobs."""
