"""The double of libneuronxla: it can be imported."""
