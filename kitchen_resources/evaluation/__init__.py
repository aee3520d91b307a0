"""Evaluation: what is asked of a model, and the answer with its uncertainty."""
