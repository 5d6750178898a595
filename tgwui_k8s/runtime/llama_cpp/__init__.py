"""GGUF models on llama.cpp: what the loader of that name is made of. No torch."""
