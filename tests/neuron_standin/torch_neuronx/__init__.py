"""The double of torch-neuronx: it has a version, and nothing else."""

from importlib.metadata import version

__version__ = version("torch-neuronx")
