"""Training by primitives at a service: what is the same for every SDK of one."""
