"""For every test: one OpenMP thread.

Small operations on two threads wait for each other at barriers, and on a machine shared with
others that made the unit tests fifteen times slower. Tests that want more threads say so.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
