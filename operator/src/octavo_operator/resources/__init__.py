"""Custom resources as frozen types: parsed once, at the door, never looked at as dicts again.

The CRDs repeat most of these rules as schema and CEL, but nothing here trusts that a schema was
in force: an object may be older than its CRD, or come from a file in local mode.
"""
