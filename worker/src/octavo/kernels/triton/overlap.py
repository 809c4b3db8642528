"""Programs that start before the one ahead of them has ended.

A step of a small batch is hundreds of short programs, and the gap between two of them is as long
as some of them run. On compute capability 9 and later a launch can be told to begin while its
predecessor still runs ("programmatic dependent launch"); the program then waits itself, as late
as it can. Every program of this package calls :func:`wait_for_predecessors` before it reads what
another program wrote in this step, and before it writes anything.

The next program may start once every worker of this one has waited. So when a program starts,
everything ahead of its predecessor is complete: before its wait it may read weights, and what
it is sure that the program just ahead does not write. The launch needs the option that
:attr:`octavo.kernels.triton.launch.Machine.launch_options` holds.

Source: NVIDIA, CUDA C++ Programming Guide, "Programmatic dependent launch and synchronization".
"""
# Programs are Triton's language, which no Python type checker knows.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_predecessors(OVERLAP: tl.constexpr):
    """Wait until all before this program have written everything; then let the next one start."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def prefetch(pointers, OVERLAP: tl.constexpr):
    """Bring the cache lines behind ``pointers`` nearer; only weights may be asked for so early."""
    if OVERLAP:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [pointers.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
