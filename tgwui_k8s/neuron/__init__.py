"""What must be known about AWS Neuron without having it: machines, memory, artifacts, options."""
