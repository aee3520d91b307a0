"""The stages that workflows are made of: thin shells over the engine's functions, one module a noun."""
