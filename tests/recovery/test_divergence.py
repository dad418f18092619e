"""A Logic whose tree is not State's is found out by the digests it publishes; both trees are written down."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conformance.wire import Client, Closed, Op, WireError, strings
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.recovery.faulty import FaultyDaemon
from tests.recovery.logic import PATIENCE, wait_for_restarts
from xenstore_logic.loop import DIGEST_EVERY
from xenstore_state.divergence import LOGICS, STATES


def write_many(client: Client, count: int) -> None:
    client.pipeline((Op.WRITE, strings(f"/many/{n % 50}", str(n))) for n in range(count))


def wait_for(path: Path) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)
    return path.read_text().splitlines()


def test_equal_trees_have_equal_digests() -> None:
    with short_run_dir() as run_dir, FaultyDaemon(run_dir) as daemon, Client(daemon.socket) as client:
        for _ in range(3):
            write_many(client, DIGEST_EVERY)
            client.rm("/many")
        client.call(Op.CONTROL, strings("restart"))
        write_many(client, 2 * DIGEST_EVERY)
        assert "State's" not in daemon.output()


def test_a_logic_with_another_tree_is_replaced_and_both_are_written_down() -> None:
    with short_run_dir() as run_dir, FaultyDaemon(run_dir) as daemon, Client(daemon.socket) as client:
        client.write("/tree/diverge", b"right")
        assert client.read("/tree/diverge") == b"something else", "the fault is there"
        with Client(daemon.socket) as other, suppress(Closed):  # what follows the digest is void
            write_many(other, DIGEST_EVERY + 50)
        (line,) = wait_for_restarts(daemon, 1)
        assert client.read("/tree/diverge") == b"right"
        state, logic = wait_for(run_dir / STATES), wait_for(run_dir / LOGICS)
        last = max(int(line.split()[1]) for line in state)
        assert {text for text in set(logic) - set(state) if int(text.split()[1]) <= last} == {
            text for text in logic if text.startswith("/tree/diverge ")
        }
        assert any(text.startswith("/tree/diverge ") and text.endswith(" right") for text in state)
        for name in (STATES, LOGICS):
            assert str(run_dir / name) in daemon.output()
            assert os.stat(run_dir / name).st_mode & 0o777 == 0o600
        assert "took over" in line
        write_many(client, DIGEST_EVERY)
        wait_for_restarts(daemon, 1)


@pytest.mark.parametrize("fault", ["abort", "raise"])
def test_the_faults_used_here_are_deaths(fault: str) -> None:
    with short_run_dir() as run_dir, FaultyDaemon(run_dir) as daemon, Client(daemon.socket) as client:
        client.write("/before", b"v")
        with pytest.raises(WireError, match="EIO"):
            client.write(f"/x/{fault}")
        assert client.read("/before") == b"v"
        assert not client.exists(f"/x/{fault}")
        wait_for_restarts(daemon, 2)


@pytest.mark.parametrize("busy", [False, True])
def test_logic_writes_its_tree_down_as_soon_as_it_is_told_to(busy: bool) -> None:
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon, Client(daemon.socket) as client:
        client.write("/tree/node", b"value")
        time.sleep(0.1)  # it has begun to listen to signals
        if busy:
            for _ in range(500):
                client.send(Op.READ, strings("/tree/node"))
        os.kill(daemon.logic_pid(), signal.SIGUSR2)
        assert any(line.startswith("/tree/node ") for line in wait_for(run_dir / LOGICS))
        wait_for_restarts(daemon, 1)
