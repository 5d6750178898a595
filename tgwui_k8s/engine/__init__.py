"""The engine: scheduler, KV cache blocks, step loop, and the client that the API process uses."""
