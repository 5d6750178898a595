"""The gateway: one address for many engines."""
