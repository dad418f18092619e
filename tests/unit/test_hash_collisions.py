"""Nobody can choose keys that collide in the daemon's tables, which would make one look-up take as long as all of them.

Names, paths, tokens and events are bytes, whose hashes depend on a seed: it is drawn at random, whatever the environment says.
Numbers hash to themselves: none that a guest chose is a key.  (Those that are keys are domids, descriptors, ports, ids that
count up, and stream positions of the few requests that a guest may have outstanding.)
"""

import gc
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from protocol.ops import Op
from protocol.wire import Message
from recovery_box.box import Box
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.recovery.test_state_dies import kill_state, state_pid
from tests.unit.ring_world import SLOTS, Guest, World

GUEST: Final = 5
CHOSEN: Final = tuple(range(0x5EED0001, 0x5EED0010))
"""Numbers that nothing but a guest's requests contains."""
PACKAGES: Final = ("protocol", "recovery_box", "xenstore_state", "xenstore_logic", "xenstored")
OPAQUE: Final = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)


def tables(*roots: object) -> Iterator[dict[Any, Any] | set[Any] | frozenset[Any]]:
    """Every dict and set that can be reached."""
    seen, rest = set[int](), list(roots)
    while rest:
        it = rest.pop()
        if id(it) in seen or isinstance(it, OPAQUE):
            continue
        seen.add(id(it))
        if isinstance(it, (dict, set, frozenset)):
            yield it
        rest += gc.get_referents(it)


def numbers(key: object) -> Iterator[int]:
    """The numbers in a key, which may be a tuple."""
    if isinstance(key, int):
        yield key
    elif isinstance(key, tuple):
        for part in key:
            yield from numbers(part)


def number_keys(*roots: object) -> set[int]:
    """The numbers that are keys, or parts of keys, in any table."""
    return {number for table in tables(*roots) for key in list(table) for number in numbers(key)}


def daemon_parts(world: World) -> list[object]:
    """State, Logic, and what their modules keep."""
    modules = [vars(module) for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES]
    return [world.store, world.registrar, world.applier, world.core, world.loop, world.rings, *modules]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(Box(str(tmp_path / "box"), max_connections=SLOTS))
    yield made
    made.close()


def asks(guest: Guest, op: int, payload: bytes, tx_id: int = 0, req_id: int = 1) -> bytes:
    """One request with numbers of the guest's choice; what was said to it."""
    guest.to_put += Message(op, req_id, tx_id, payload).encode()
    guest._puts()
    guest.world.settle()
    guest.looks()
    (reply,) = [m for m in guest.take() if m.op != Op.WATCH_EVENT]
    return reply.payload


NUMBERED: Final = {
    "the request's id": lambda guest, n: asks(guest, Op.READ, b"a\0", req_id=n),
    "an unknown transaction": lambda guest, n: asks(guest, Op.WRITE, b"a\0v", tx_id=n),
    "the end of an unknown transaction": lambda guest, n: asks(guest, Op.TRANSACTION_END, b"T\0", tx_id=n),
    "an unknown operation": lambda guest, n: asks(guest, n, b"a\0"),
    "the domid in a permission list": lambda guest, n: asks(guest, Op.SET_PERMS, b"a\0n5\0r%d\0" % n),
    "the depth of a watch": lambda guest, n: asks(guest, Op.WATCH, b"a\0t\0%d\0" % n),
    "an offset": lambda guest, n: asks(guest, Op.DIRECTORY_PART, b"a\0%d\0" % n),
    "a domain whose path is asked for": lambda guest, n: asks(guest, Op.GET_DOMAIN_PATH, b"%d\0" % n),
    "a domain that is introduced": lambda guest, n: asks(guest, Op.INTRODUCE, b"%d\x001\x007\0" % n),
    "a domain whose features are asked for": lambda guest, n: asks(guest, Op.GET_FEATURE, b"%d\0" % n),
    "a domain whose quota is asked for": lambda guest, n: asks(guest, Op.GET_QUOTA, b"%d\0nodes\0" % n),
}
"""Ways in which a guest can name a number."""


@pytest.mark.parametrize("way", NUMBERED)
@pytest.mark.parametrize("in_transaction", [False, True], ids=["outside", "beside a transaction"])
def test_no_number_that_a_guest_chose_is_a_key(world: World, way: str, in_transaction: bool) -> None:
    guest = world.introduced(GUEST)
    assert asks(guest, Op.WRITE, b"a\0v") == b"OK\0"
    if in_transaction:
        tx_id = int(asks(guest, Op.TRANSACTION_START, b"\0")[:-1])
        assert asks(guest, Op.SET_PERMS, b"a\0n5\0r%d\0" % CHOSEN[-1], tx_id) == b"OK\0"
    for number in CHOSEN:
        NUMBERED[way](guest, number)
    found = number_keys(*daemon_parts(world))
    assert GUEST in found
    assert not found & set(CHOSEN)


def test_keys_are_found_wherever_they_stand() -> None:
    class Slotted:
        __slots__ = ("table",)

    slotted = Slotted()
    slotted.table = {b"name": [{(7, b"x"): frozenset({8})}]}  # type: ignore[attr-defined]
    assert number_keys(slotted) == {7, 8}


@pytest.mark.parametrize("seed", ["0", "7"])
def test_a_seed_that_the_environment_fixes_is_dropped_for_good(seed: str) -> None:
    with short_run_dir() as run_dir, OurDaemon(run_dir, env={"PYTHONHASHSEED": seed}) as daemon:
        assert "PYTHONHASHSEED" not in environment(daemon.pid)
        kill_state(daemon)
        assert "PYTHONHASHSEED" not in environment(state_pid(daemon))


def environment(pid: int) -> dict[str, str]:
    """What a process was started with."""
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)
