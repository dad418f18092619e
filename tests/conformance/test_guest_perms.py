"""Edge cases of permissions as guests meet them: who may do what, what is hidden, who owns what is made.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
Cases of the edge-case table covered here: 12, 13, 21, 26-29, 66-72, 75-78, 80, 82-88.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.conformance.test_guest_basics import MakeGuest
from tests.conformance.wire import Client
from tests.conformance.xen import Guest

"""The domid that stands for any domain in a permission list."""


@dataclass(frozen=True)
class Pair:
    """Two guests, and the permission lists written with `1` and `2` for their domids."""

    one: Guest
    two: Guest

    def perms(self, text: str) -> list[str]:
        number = {"1": self.one.domid, "2": self.two.domid}
        return [word[0] + str(number.get(word[1:], word[1:])) for word in text.split()]


@pytest.fixture
def pair(guest: MakeGuest) -> Pair:
    return Pair(guest(), guest())


def shared(client: Client, path: str, *perms: str) -> str:
    """A node that domain 0 makes, with these permissions."""
    client.write(path, b"v")
    client.set_perms(path, *perms)
    return path


# ---- the rule: the owner may all; else the first entry that names the domain counts; else the first letter does


# ---- hiding: nobody learns whether a node exists where it may not look


# ---- setting permissions


# ---- any domain


# ---- who owns what is made
