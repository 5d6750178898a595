"""Linear layers with weights of 4 or 8 bits: checkpoint formats, kernels, the module itself."""
