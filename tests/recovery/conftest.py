"""What the recovery tests start from: a daemon of one's own, whose Logic may be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.oracle.daemons import OurDaemon, short_run_dir


@pytest.fixture
def daemon() -> Iterator[OurDaemon]:
    """A daemon for one test alone."""
    reason = OurDaemon.available()
    if reason is not None:
        pytest.skip(reason)
    with short_run_dir() as run_dir, OurDaemon(run_dir) as running:
        yield running
