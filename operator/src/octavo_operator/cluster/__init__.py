"""The only rooms that talk to Kubernetes, and an in-memory stand-in with the same semantics.

`interface` says what the operator asks of a cluster; `kubernetes_api` is the real one,
`object_store` the one in memory that local mode and the tests use. `reconciler` carries out what
`reconcile/` decides, against either.
"""
