"""`octavo-operator` whose `octavo` is the fake worker; run as a script, arguments as usual."""

from __future__ import annotations

import sys
from pathlib import Path

from octavo_operator import cli
from octavo_operator.local import container


def main() -> int:
    worker = Path(__file__).with_name("fake_octavo_worker.py")
    container.installed_programs = lambda: {"octavo": (sys.executable, str(worker))}
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
