"""Kubernetes objects for one InferenceService: one pure builder per kind, dict out.

Builders see parsed resources and settings, never the cluster: the same input always gives the same
bytes. What is already running is the planner's business (`reconcile/`).
"""
