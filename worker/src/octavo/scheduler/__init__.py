"""Who runs, how many tokens, in which blocks: the deciding wing, pure Python, no torch.

:class:`~octavo.scheduler.scheduler.Scheduler` is the only door.
"""
