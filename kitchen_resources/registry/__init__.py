"""The registry: immutable model versions, aliases, and the rule for promotion."""
