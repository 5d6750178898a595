"""The HTTP side: OpenAI-compatible routes, probes, metrics, server-sent events."""
