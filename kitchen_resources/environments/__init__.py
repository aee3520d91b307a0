"""Environments of reinforcement learning: problems that a policy acts on, and what its actions are worth."""
