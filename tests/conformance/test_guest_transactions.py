"""Transactions of guests: what they depend on besides what was read, namely rights and permission lists.

A commit fails with EAGAIN only when something that the guest was told, an access decision, or the permission list of a node
that it makes would be different now.  C xenstored aborts more: there, any write to a node that the transaction has touched
is a conflict.
Cases of the edge-case table covered here: 128-131 and 136, with guests.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.test_guest_basics import MakeGuest
from tests.conformance.wire import Client
from tests.conformance.xen import Guest

Act = Callable[[Guest, str, int], None]


def write(guest: Guest, path: str, tx: int) -> None:
    guest.write(path, b"new", tx=tx)


def make_below(guest: Guest, path: str, tx: int) -> None:
    guest.mkdir(f"{path}/kid", tx=tx)


def remove(guest: Guest, path: str, tx: int) -> None:
    guest.rm(path, tx=tx)


def make_deep_below(guest: Guest, path: str, tx: int) -> None:
    guest.write(f"{path}/a/b/c", b"new", tx=tx)


CHANGES = [write, make_below, remove, make_deep_below]


@pytest.fixture
def one(guest: MakeGuest) -> Guest:
    return guest()


@pytest.fixture
def shared(one: Guest, client: Client, node: str) -> str:
    """A node that the guest may read and write."""
    path = f"{node}/shared"
    client.write(path, b"old")
    client.set_perms(path, "n0", f"b{one.domid}")
    return path
