"""The edge to kopf: thin handlers that put a resource's name into a queue, and nothing else.

kopf watches our two kinds, keeps the process alive and answers the probes. Its handlers for create,
update and resume are not used: they keep their place in annotations of the resource, and the
operator neither writes those nor has the right to. Watch events need no memory, because every pass
is idempotent and level-based; retries with their pauses are the queue's.
"""
