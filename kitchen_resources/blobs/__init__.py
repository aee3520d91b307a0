"""Blobs: durable objects under keys, on which everything stored is built."""
