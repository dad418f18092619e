"""With `XOARSTORE_RESTART`, tests with a daemon fail unless its Logic was restarted while they ran."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.oracle.daemons import OurDaemon
from tests.oracle.restarting import restarted_in_test


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """The test itself, without its fixtures."""
    daemon = pyfuncitem.funcargs.get("daemon")
    with restarted_in_test(daemon if isinstance(daemon, OurDaemon) else None):
        return (yield)
