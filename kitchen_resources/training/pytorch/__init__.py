"""Models on this machine by torch, transformers and peft: what the backends that run here share."""
