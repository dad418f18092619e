"""Builds of the daemon that are broken on purpose do not pass: the torture would notice if recovery lost one of its rules."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from tests.oracle.daemons import short_run_dir
from tests.torture.broken import BUILDS, CRASH
from tests.torture.checker import STALE, UNWRITTEN
from tests.torture.report import CLOSED, TORN, troubles
from tests.torture.stage import TortureDaemon, crowd

HISTORY = "a history that is not linearizable"
FOUND_BY = {
    "publish-after-send": HISTORY,
    "region-not-filled": TORN,
    "positions-packed": CLOSED,
    "not-drained": HISTORY,
    "nothing-undone": HISTORY,
}
"""What each must be found by.  Where answers are well-formed and no connection is closed, only the history can tell."""
SECONDS = 1.0
ROUNDS = 8


def played(build: str, *, crashing: bool) -> Counter[str]:
    """What clients of such a build, and the checker, complain of."""
    with (
        short_run_dir() as run_dir,
        TortureDaemon(run_dir, random.SystemRandom().getrandbits(32), steps=[CRASH], broken=build) as daemon,
        crowd(daemon, 1, 0, "--history") as clients,
    ):
        if crashing:
            with daemon.crashing():
                time.sleep(SECONDS)
        else:
            time.sleep(SECONDS)
        found = clients.finish()
    assert found["operations"]
    return troubles(found) + Counter({HISTORY: found["kinds"].get(STALE, 0) + found["kinds"].get(UNWRITTEN, 0)})


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_it_is_rejected(build: str) -> None:
    found: Counter[str] = Counter()
    for _ in range(ROUNDS):
        found += played(build, crashing=True)
        if found[FOUND_BY[build]]:
            return
    raise AssertionError(f"{build} was not found by {FOUND_BY[build]}: {found}")


@pytest.mark.slow
@pytest.mark.parametrize("build", sorted(BUILDS.keys() - {"nothing-undone"}))
def test_as_long_as_nobody_dies_it_passes(build: str) -> None:
    assert not played(build, crashing=False)
