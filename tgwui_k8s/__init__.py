"""text-generation-webui made fit for Kubernetes: an OpenAI-compatible LLM serving engine."""

__version__ = "0.1.0"
