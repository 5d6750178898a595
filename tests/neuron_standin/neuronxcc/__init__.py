"""The double of neuronx-cc: it has a version, and nothing else."""

from importlib.metadata import version

__version__ = version("neuronx-cc")
