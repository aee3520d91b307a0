"""Recipes: what to train, what makes two of them the same run, and how they are written as files."""
