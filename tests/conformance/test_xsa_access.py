"""Xen's security advisories about xenstored: who may do what, who learns what, who inherits what.

One test or more for each advisory, named after it; https://xenbits.xen.org/xsa/advisory-N.html is its text.  After each, the
daemon's processes are the same as before and domain 0 can still read /.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.conformance.subject import UnderTest
from tests.conformance.test_guest_basics import (
    MakeGuest,
    unharmed,
)
from tests.conformance.wire import PATIENCE, Client, Op, pack, strings


@pytest.fixture(autouse=True)
def harmless(daemon: UnderTest) -> Iterator[None]:
    with unharmed(daemon):
        yield


# ---- XSA-206: a guest that writes all the time made every transaction fail


def test_xsa_206_a_guest_that_writes_all_the_time_does_not_stop_transactions(
    guest: MakeGuest, client: Client, node: str
) -> None:
    one = guest()
    client.set_perms(node, "n0", f"b{one.domid}")
    client.write(node, b"0")
    unsent = b""
    begin, tries = time.monotonic(), 0
    for _ in range(10):
        while True:
            tries += 1
            tx = client.start()
            value = client.read(node, tx=tx)
            unsent = unsent or b"".join(pack(Op.WRITE, strings(node) + b"%d-%d" % (tries, i)) for i in range(10))
            unsent = unsent[one.put_bytes(unsent, timeout=0) :]
            with suppress(TimeoutError):
                one.receive_raw(0)
            client.write(node, value + b".", tx=tx)
            if client.commit(tx) == "OK":
                break
            assert time.monotonic() - begin < 2 * PATIENCE, f"no commit in {tries} tries"
    print(f"{tries} tries for 10 commits")
    assert one.field("req_cons") > 0, "the guest was served, too"
