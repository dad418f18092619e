"""A short torture: each phase of `python -m tests.torture` for some seconds.  (`make torture` is the long one.)

`XOARSTORE_TORTURE_SECONDS` sets how long all phases take together, at least (default 30), `XOARSTORE_TORTURE_SEED` the seed.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.recovery.logic import EPOLL_WAIT
from tests.torture.phases import PHASES

SECONDS = float(os.environ.get("XOARSTORE_TORTURE_SECONDS", "30"))
SEED = int(os.environ.get("XOARSTORE_TORTURE_SEED", "0")) or random.SystemRandom().getrandbits(32)
LEAST = 1
"""Kills at each step."""


@pytest.mark.slow
@pytest.mark.skipif(not EPOLL_WAIT, reason="the numbers of system calls are not known for this machine")
@pytest.mark.parametrize("name", PHASES)
def test_nobody_notices(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = PHASES[name]
    tally = run(SECONDS / len(PHASES), SEED, LEAST)
    with capsys.disabled():
        print(f"\nseed {SEED}: {tally}")
    assert not tally.wrong
    assert tally.total
    assert tally.counts["operations"]
    assert tally.counts["events"]
