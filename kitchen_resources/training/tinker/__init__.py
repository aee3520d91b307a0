"""A remote service that speaks the Tinker API."""
