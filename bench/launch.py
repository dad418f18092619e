"""Runs a module of this folder with the daemon that an interpreter has installed, not with the sources that lie here.

For: measuring a build of another environment from the inside: `.venv-compiled/bin/python -P bench/launch.py bench.micro`.
Guarantees: with -P, what is installed in the environment comes first, this folder last; daemons that are started are of the
same build.
Does not know: what it runs.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    sys.path.append(str(ROOT))
    from tests.oracle.daemons import PYTHON  # noqa: PLC0415 - it is found only now

    if sys.flags.safe_path:
        os.environ[PYTHON] = sys.executable
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
