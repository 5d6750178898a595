"""Models on NeuronCores: one small adapter per library, and what runs them."""
