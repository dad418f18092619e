"""What State does about its own survival when it cannot have it: no guardian, no room, no process; it goes on serving."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from recovery_box.fdstore import FdStore
from tests.unit.test_recovered import back, tree
from tests.unit.written import PATIENCE, State
from xenstore_state import survival
from xenstore_state.divergence import dump_aside
from xenstore_state.store import Store
from xenstore_state.survival import REPLACED_MAX, Survival, numbers

GIVEN_UP = "State would not survive its death from now on: "


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path)
    yield made
    made.close()


class Told(FdStore):
    """A guardian: it ends when State does not want to come back."""

    def let_go(self) -> None:
        self.say("STOPPING=1")


class Guardians:
    """Makes guardians, as many as are wanted; each hears what is said to it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.heard: list[socket.socket] = []

    def __call__(self, gone: FdStore | None = None) -> FdStore:
        if self.fails:
            raise OSError(11, "Resource temporarily unavailable")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.heard.append(theirs)
        return Told(ours)

    def said(self, which: int = -1) -> list[str]:
        """What one was told since the last look."""
        said = []
        with suppress(BlockingIOError):
            while message := self.heard[which].recv(1000):
                said.append(message.decode())
        return said


@pytest.fixture
def guardians() -> Iterator[Guardians]:
    made = Guardians()
    yield made
    for theirs in made.heard:
        theirs.close()


# ---- guardians


def test_another_guardian_is_given_everything(tmp_path: Path, guardians: Guardians) -> None:
    made = Survival(str(tmp_path), guardians(), guardians)
    with socket.socket() as one, socket.socket() as other:
        made.keep("box", one.fileno())
        made.keep("c", other.fileno())
        before = guardians.said()
        assert [line.partition("FDNAME=")[0] for line in before] == ["FDSTORE=1\nFDPOLL=0\n"] * 2
        guardians.heard[0].close()
        made.drop(12345)  # nobody keeps it: nothing is said
        assert len(guardians.heard) == 1
        made.drop(other.fileno())  # which finds out
        assert guardians.said() == [before[0], "READY=1"]
        assert made.can_be_lost


def test_a_descriptor_that_is_kept_as_something_else_now_is_dropped_first(tmp_path: Path, guardians: Guardians) -> None:
    made = Survival(str(tmp_path), guardians())
    with socket.socket() as one:
        made.keep("c", one.fileno())
        made.keep("c", one.fileno())
        made.keep("box", one.fileno())
    assert [line.partition("=")[0] for line in guardians.said()] == ["FDSTORE", "FDSTOREREMOVE", "FDSTORE"]


def test_guardians_that_end_one_after_the_other_are_given_up(
    tmp_path: Path, guardians: Guardians, caplog: pytest.LogCaptureFixture
) -> None:
    made = Survival(str(tmp_path), guardians(), guardians)
    for _ in range(REPLACED_MAX + 1):
        assert made.can_be_lost
        made.keeper_gone("it has ended")
    assert not made.can_be_lost
    assert caplog.messages[-1] == GIVEN_UP + "one guardian after the other ends"
    assert guardians.said() == ["READY=1", "STOPPING=1"], (
        "nobody shall start a State that cannot know what this one does"
    )
    with socket.socket() as one:
        made.keep("c", one.fileno())
    made.settled()
    assert guardians.said() == []


def test_a_guardian_that_cannot_be_started_is_given_up(
    tmp_path: Path, guardians: Guardians, caplog: pytest.LogCaptureFixture
) -> None:
    made = Survival(str(tmp_path), guardians(), Guardians(fails=True))
    guardians.heard[0].close()
    made.ready()
    assert caplog.messages[-1].startswith(GIVEN_UP)
    assert not made.can_be_lost


def test_whoever_else_keeps_descriptors_is_not_replaced(
    tmp_path: Path, guardians: Guardians, caplog: pytest.LogCaptureFixture
) -> None:
    """systemd, say."""
    made = Survival(str(tmp_path), guardians())
    guardians.heard[0].close()
    made.ready()
    made.ready()
    assert len(guardians.heard) == 1
    assert [message.startswith(GIVEN_UP) for message in caplog.messages] == [True]
    made.end()


# ---- checkpoints


def in_the_way(state: State, what: str, ahead: int = 1) -> Path:
    """A directory where a file is to be made."""
    number = max(numbers(state.directory, "ledger")) + ahead
    path = Path(state.directory) / what.replace("N", str(number))
    path.mkdir()
    return path


def ask_again(state: State) -> None:
    """It is time for another attempt."""
    state.survival._made -= survival.IDLE_SECONDS + 1
    state.look()


def until_the_child_is_gone(state: State) -> None:
    deadline = time.monotonic() + PATIENCE
    while state.survival._child:
        assert time.monotonic() < deadline
        time.sleep(0.002)
        state.survival._ask_child()


def test_without_the_first_checkpoint_there_is_nothing_to_come_back_to(
    tmp_path: Path, guardians: Guardians, caplog: pytest.LogCaptureFixture
) -> None:
    made = Survival(str(tmp_path), guardians(), complete=False)
    (tmp_path / f"checkpoint.{made._number + 1}.new").mkdir()
    made.look_after(Store(), 0, dict)
    assert caplog.messages[-1].startswith(GIVEN_UP)
    assert guardians.said() == ["STOPPING=1"]
    made.look_after(Store(), 0, dict)
    assert numbers(str(tmp_path), "checkpoint") == []


@pytest.mark.parametrize("cause", ["no ledger", "no process"])
def test_a_checkpoint_that_cannot_be_begun_is_tried_again_after_a_while(
    state: State, cause: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_process() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    before = numbers(state.directory, "checkpoint")
    with monkeypatch.context() as patch:
        if cause == "no process":
            patch.setattr(os, "fork", no_process)
        else:
            in_the_way(state, "ledger.N")
        state.write("a")
        state.survival.want_checkpoint()
        state.look()
        assert caplog.messages[-1].startswith("no checkpoint can be made: ")
        told = len(caplog.messages)
        state.survival.want_checkpoint()
        state.look()
        assert len(caplog.messages) == told, "not at once"
    assert numbers(state.directory, "checkpoint") == before
    state.write("b")
    assert tree(back(state).store).keys() == {"tool", "a", "b"}
    for path in Path(state.directory).glob("ledger.*"):
        if path.is_dir():
            path.rmdir()
    ask_again(state)
    until_the_child_is_gone(state)
    assert max(numbers(state.directory, "checkpoint")) > max(before)
    assert tree(back(state).store).keys() == {"tool", "a", "b"}


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(state: State) -> None:
    state.write("a")
    obstacle = in_the_way(state, "checkpoint.N.new")
    state.survival.want_checkpoint()
    state.look()
    until_the_child_is_gone(state)
    assert state.survival._failed
    state.write("b")
    assert tree(back(state).store).keys() == {"tool", "a", "b"}
    obstacle.rmdir()
    state.survival.want_checkpoint()
    ask_again(state)
    until_the_child_is_gone(state)
    assert not state.survival._failed
    assert tree(back(state).store).keys() == {"tool", "a", "b"}


def test_a_child_that_is_killed_is_a_checkpoint_that_failed(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Survival, "_write", lambda *arguments: signal.pause())
    state.survival.want_checkpoint()
    state.look()
    os.kill(state.survival._child, signal.SIGKILL)
    until_the_child_is_gone(state)
    assert state.survival._failed
    state.write("a")
    assert tree(back(state).store).keys() == {"tool", "a"}


def test_the_end_does_not_wait_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(tmp_path)
    monkeypatch.setattr(Survival, "_write", lambda *arguments: signal.pause())
    state.survival.want_checkpoint()
    state.look()
    child = state.survival._child
    state.survival.end()
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)
    assert not os.path.exists(state.directory)
    state.survival.keeper.close()
    state.theirs.close()


# ---- what a ledger says


def test_whom_state_hung_up_on_is_gone(state: State) -> None:
    state.accept()
    state.survival.hung_up(state.store.items.connections.find(2))
    assert [connection.id for connection in back(state).store.items.connections] == [1]


def test_an_entry_of_an_unknown_kind_is_a_damage(state: State, caplog: pytest.LogCaptureFixture) -> None:
    state.write("a")
    state.survival._note((99, b"from a later version"))
    state.write("b")
    found = back(state)
    assert not found.complete
    assert tree(found.store).keys() == {"tool", "a"}
    assert any("an entry of kind 99" in message for message in caplog.messages)


# ---- a tree that is written down for whoever looks for a divergence


def test_a_tree_that_cannot_be_written_down_leaves_no_process(state: State, tmp_path: Path) -> None:
    (tmp_path / "dump.new").mkdir()
    dump_aside(state.store.tree, str(tmp_path / "dump"))
    assert not (tmp_path / "dump").exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
