"""The samplers in NumPy: the readable reference, one module per family."""
