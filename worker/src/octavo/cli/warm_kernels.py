"""``octavo warm-kernels``: compile a model's GPU kernels where nobody waits for them."""

from __future__ import annotations

import argparse

from octavo.cli.configs import engine_config
from octavo.engine.compile_ahead import capability_of, warm_kernels
from octavo.logs import configure_logging


def run(parsed: argparse.Namespace) -> int:
    """Prints how many there are and where. Raises ConfigError for what cannot be compiled for."""
    configure_logging(parsed.log_format, parsed.log_level)
    capability = capability_of(parsed.compute_capability)
    num_programs, folder = warm_kernels(engine_config(parsed), capability)
    print(f"{num_programs} kernels for compute capability {parsed.compute_capability} in {folder}")
    return 0
