"""pyxs, the pure Python XenStore client from PyPI, on this daemon.

Its own test-suite is not in its packages on PyPI.  Whoever has it (the folder `tests` of its source repository) names that
folder in the environment variable `XOARSTORE_PYXS_TESTS`; it is then run on this daemon and on C xenstored,
and must score the same on both.  It is written for a privileged domain and an old pytest: a few lines around it help.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conformance.subject import UnderTest
from tests.conformance.wire import Client as WireClient
from tests.oracle.daemons import CXenstored, Daemon, OurDaemon, short_run_dir
from tests.oracle.restarting import restarted_inside

pyxs: Any = pytest.importorskip("pyxs", reason="pyxs is missing (PyPI)")


@pytest.fixture
def path(node: str) -> bytes:
    return node.encode()


@pytest.fixture
def pyxs_client(daemon: UnderTest) -> Iterator[Any]:
    with pyxs.Client(unix_socket_path=str(daemon.socket)) as client:
        yield client


def code(failure: pytest.ExceptionInfo[BaseException]) -> object:
    return failure.value.args[0]


def test_values_and_children(pyxs_client: Any, path: bytes) -> None:
    pyxs_client.write(path + b"/a/b", b"value")
    pyxs_client[path + b"/a/c"] = b"w"
    pyxs_client.mkdir(path + b"/d")
    assert pyxs_client.read(path + b"/a/b") == pyxs_client[path + b"/a/b"] == b"value"
    assert pyxs_client.list(path) == [b"a", b"d"]
    assert list(pyxs_client.walk(path + b"/a")) == [
        (path + b"/a", b"", [b"b", b"c"]),
        (path + b"/a/b", b"value", []),
        (path + b"/a/c", b"w", []),
    ]
    pyxs_client.delete(path + b"/a")
    assert not pyxs_client.exists(path + b"/a/b")
    assert pyxs_client.read(path + b"/a", b"default") == b"default"


def test_errors_have_their_numbers(pyxs_client: Any, path: bytes) -> None:
    with pytest.raises(pyxs.PyXSError) as failure:
        pyxs_client.read(path + b"/missing")
    assert code(failure) == errno.ENOENT
    with pytest.raises(pyxs.PyXSError) as failure:
        pyxs_client.set_perms(path, [b"n9999"])
    assert code(failure) == errno.ENOENT


def test_permissions(pyxs_client: Any, path: bytes) -> None:
    assert pyxs_client.get_perms(path) == [b"n0"]
    pyxs_client.set_perms(path, [b"b0", b"n0", b"r5"])
    assert pyxs_client.get_perms(path) == [b"b0", b"n0", b"r5"]


def test_domains(pyxs_client: Any) -> None:
    assert pyxs_client.get_domain_path(999) == b"/local/domain/999"
    assert not pyxs_client.is_domain_introduced(999)


def test_transactions(pyxs_client: Any, path: bytes) -> None:
    pyxs_client.transaction()
    pyxs_client.write(path, b"1")
    pyxs_client.rollback()
    assert pyxs_client.read(path) == b""
    pyxs_client.transaction()
    pyxs_client.write(path, b"2")
    assert pyxs_client.commit()
    assert pyxs_client.read(path) == b"2"


def test_a_conflict_makes_a_commit_false(pyxs_client: Any, client: WireClient, path: bytes) -> None:
    pyxs_client.transaction()
    assert pyxs_client.read(path) == b""
    client.write(path.decode(), b"outside")
    pyxs_client.write(path, b"inside")
    assert not pyxs_client.commit()
    assert pyxs_client.read(path) == b"outside"


def test_a_monitor_sees_changes(pyxs_client: Any, path: bytes) -> None:
    with pyxs_client.monitor() as monitor:
        monitor.watch(path, b"token")
        events = monitor.wait()
        assert next(events) == (path, b"token")
        for below in (b"/x", b"/x/y"):
            writer = Thread(target=pyxs_client.write, args=(path + below, b"v"))
            writer.start()
            assert next(events) == (path + below, b"token")
            writer.join()


# ---- its own tests

AROUND = """
import os
import pytest
import pyxs

pytest.yield_fixture = getattr(pytest, "yield_fixture", pytest.fixture)
pyxs.Client.SU = True
exists = os.path.exists
os.path.exists = lambda path: path == "/dev/xen" or exists(path)


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if "XenBusConnection" not in item.name]
"""


def score(kind: type[Daemon], suite: Path, scratch: Path) -> dict[str, str]:
    """How each test of the suite ends on a daemon of this kind."""
    shutil.copytree(suite, scratch / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (scratch / "conftest.py").write_text(AROUND)
    with short_run_dir() as run_dir, kind(run_dir) as daemon, restarted_inside(daemon):
        with WireClient(daemon.socket) as client:
            client.mkdir("/local/domain")
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=result.xml", "tests"],
            cwd=scratch,
            env=daemon.client_env(),
            capture_output=True,
            timeout=120,
        )
    results = {}
    for case in ElementTree.parse(scratch / "result.xml").iter("testcase"):
        outcomes = sorted(child.tag for child in case if child.tag in ("failure", "error", "skipped"))
        results[f"{case.get('classname')}::{case.get('name')}"] = " ".join(outcomes) or "passed"
    return results


@pytest.mark.oracle
def test_its_own_tests_score_on_this_daemon_as_on_c_xenstored(tmp_path: Path) -> None:
    suite = os.environ.get("XOARSTORE_PYXS_TESTS")
    if not suite:
        pytest.skip("pyxs' own tests are not on PyPI: XOARSTORE_PYXS_TESTS names their folder")
    for kind in (OurDaemon, CXenstored):
        reason = kind.available()
        if reason is not None:
            pytest.skip(reason)
    scores = {}
    for kind in (CXenstored, OurDaemon):
        scratch = tmp_path / kind.name
        scratch.mkdir()
        scores[kind.name] = score(kind, Path(suite), scratch)
    assert len(scores["c"]) > 40
    assert scores["ours"] == scores["c"]
