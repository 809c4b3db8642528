"""Octavo's Kubernetes operator: turns InferenceService and LoRAAdapter into GPU worker pods."""

__version__ = "0.1.0"
