"""vLLM's engine behind our API: what the loader of that name is made of."""
