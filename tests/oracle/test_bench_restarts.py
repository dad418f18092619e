"""Restarts as the benchmark brings them about."""

import os
from contextlib import ExitStack

import pytest

from bench.restarts import stand
from tests.oracle.build import BuildFailed, MissingPackage


def test_whoever_measures_has_all_processors_again_afterwards() -> None:
    """Confined to one, it would have the next daemon on that as well."""
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        try:
            stack.enter_context(stand("ours", stack))
        except (BuildFailed, MissingPackage) as e:
            pytest.skip(str(e))
        assert os.sched_getaffinity(0) < allowed or len(allowed) == 1
    assert os.sched_getaffinity(0) == allowed
