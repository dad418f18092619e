"""The daemon as dom0's xenstored on a real Xen.  The checks stand in dom0/; each is a test here."""

import importlib

import pytest

from tests.xen.conftest import Boots
from tests.xen.dom0.checks import PASSED, SKIPPED, Job

JOBS: list[Job] = [
    importlib.import_module(f"tests.xen.dom0.{name}").JOB
    for name in ("kills", "guests", "moves", "takeover", "conformance")
]

pytestmark = pytest.mark.xen


@pytest.mark.parametrize(
    ("job", "check"), [pytest.param(job.name, c.name, id=f"{job.name}-{c.name}") for job in JOBS for c in job.checks]
)
def test_on_xen(job: str, check: str, boots: Boots) -> None:
    """One check of one boot."""
    boot = boots(job)
    result = boot.result(check)
    print(f"{result.seconds:.2f} s {result.text}")
    if result.outcome == SKIPPED:
        pytest.skip(result.text)
    if result.outcome != PASSED:
        pytest.fail(f"{result.outcome}: {result.text}\n{boot.explain()}", pytrace=False)
