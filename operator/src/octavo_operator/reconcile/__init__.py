"""Deciding: observed state in, actions out. Pure: no clock, no cluster, no logging.

`plan` is the whole public face; `status` says what is written back, `pinning` which pod template
is right, `drift` whether an object still is what was applied.
"""
