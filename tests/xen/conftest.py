"""Boots start when the first test wants one of them, two at a time, and only those that selected tests need."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

import pytest

from tests.xen import image, machine
from tests.xen.dom0.checks import OURS, C, Settings
from tests.xen.machine import Boot

AT_ONCE: Final = 2
SWITCH: Final = "XOARSTORE_XEN"


class Boots(Protocol):
    """Waits for the boot of a job."""

    def __call__(self, job: str) -> Boot: ...


def pytest_configure(config: pytest.Config) -> None:
    """Knows the marker."""
    config.addinivalue_line("markers", "xen: boots the real Xen under QEMU (make test-xen)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The ordinary run boots nothing."""
    if os.environ.get(SWITCH) == "1":
        return
    for item in items:
        if item.get_closest_marker("xen"):
            item.add_marker(
                pytest.mark.skip(reason=f"boots the real Xen, for minutes: make test-xen (sets {SWITCH}=1)")
            )


@pytest.fixture(scope="session")
def settings() -> Settings:
    """XOARSTORE_UNDER_TEST: ours, or c."""
    under_test = os.environ.get("XOARSTORE_UNDER_TEST", OURS)
    if under_test not in {OURS, C}:
        pytest.skip(f"tests/xen knows {OURS} and {C}, not {under_test}")
    return Settings(under_test)


@pytest.fixture(scope="session")
def boots(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Boots]:
    """The boots of all jobs that some selected test is about."""
    if reason := image.missing():
        pytest.fail(reason)
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    jobs = dict.fromkeys(str(item.callspec.params["job"]) for item in items if item.get_closest_marker("xen"))
    stop = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running: dict[str, Future[Boot]] = {job: pool.submit(machine.run, job, settings, stop) for job in jobs}
        try:
            yield lambda job: running[job].result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
