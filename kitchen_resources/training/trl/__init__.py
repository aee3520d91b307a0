"""The `trl` backend: TRL's stable trainers, one epoch at a time, with exact resume from safetensors and JSON."""
