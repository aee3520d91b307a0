"""The `local` backend: primitives on transformers, peft and torch, in this process."""
