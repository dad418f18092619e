"""The daemon with patches: `python -m tests.torture.launcher` is `xenstored`, told by a variable what to do to itself.

The variable holds JSON: `file` (where crashes are written down), `seed`, `steps` (at which the daemon crashes, see
`injections`) and `broken` (which of `broken.BUILDS` it is, if any).  A State that the guardian starts again runs this too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from tests.torture import broken, logic_steps, state_steps
from tests.torture.injections import LOGIC, STATE, Injector, before
from xenstored import __main__ as xenstored
from xenstored.guard import GUARDIAN_VARIABLE

VARIABLE: Final = "XOARSTORE_TORTURE"


def main() -> int:
    """The command."""
    told: dict[str, Any] = json.loads(os.environ[VARIABLE])
    injector = Injector(Path(told["file"]), told["seed"], told["steps"])
    if told["broken"]:
        broken.BUILDS[told["broken"]](injector)
    else:
        if LOGIC.keys() & set(told["steps"]):
            logic_steps.install(injector)
        if STATE.keys() & set(told["steps"]):
            state_steps.install(injector)
    state_steps.checkpoints_often()
    if GUARDIAN_VARIABLE in os.environ:  # a guardian has started this State, so there is something to lose
        injector.arm("state")
    before(xenstored, "run_logic", lambda *_: injector.arm("logic"))
    return xenstored.main()


if __name__ == "__main__":
    sys.exit(main())
