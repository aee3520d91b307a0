"""The four training loops, each written once for every backend that offers primitives."""
