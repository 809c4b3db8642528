"""The version of the worker; what the distribution, the API and the images report."""

__version__ = "0.1.0"
