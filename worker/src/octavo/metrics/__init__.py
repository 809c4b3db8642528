"""What Prometheus reads: vLLM's metric names, and ``octavo_`` ones for what vLLM lacks.

Knows names, labels and buckets. What the engine counts (tokens, steps, blocks) is read from its
statistics when Prometheus asks, and costs nothing in between; what only the server can know
(waiting as clients feel it) is counted here, in plain integers: one thread, no locks.
"""
