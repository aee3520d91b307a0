"""Telemetry: events, and the handlers that take them somewhere."""
