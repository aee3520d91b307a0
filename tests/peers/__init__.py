"""Backends against real peers: servers and clusters in processes of their own, on loopback."""
