"""Debian's C xenstored and oxenstored against the reference model, so that the model itself is checked.

`differences` lists what they do otherwise; whatever is not listed there fails the test, and with it the model.
"""

import os
import signal
from typing import cast

import pytest

from tests.model import reference
from tests.model.differences import Case, is_asked, is_forgiven
from tests.model.harness import DOMAIN_ENDS, QUOTAS
from tests.model.nodes import DIRECTORY_PART
from tests.model.reference import Disagreement
from tests.model.running import Running
from tests.model.test_running import RunningMachine, play
from tests.oracle.daemons import CXenstored, Daemon, OXenstored, short_run_dir

pytestmark = pytest.mark.oracle

KNOWN = {
    "c": reference.KNOWN - {reference.GET_FEATURE, 24, 25, reference.SET_QUOTA},
    "ocaml": reference.KNOWN - {reference.GET_FEATURE, 24, 25, reference.SET_QUOTA, DIRECTORY_PART},
}


class Oracle(Running):
    """A daemon of 4.17; what must not be asked is not."""

    special_perms = False

    def __init__(self, daemon: Daemon, guests: tuple[int, ...]) -> None:
        self.ordered = daemon.name == "c"
        self.default_quotas = QUOTAS | {"node-permissions": 6 if daemon.name == "c" else 1000}
        super().__init__(daemon, guests, {}, KNOWN[daemon.name])
        tree = self.model.tree
        tree.keeps_entries = daemon.name == "c"
        tree.inherits_owner = daemon.name == "ocaml"
        tree.nodes[b"@releaseDomain"] = tree.nodes[b"@introduceDomain"]  # newer ones let guests know

    def destroy(self, domid: int) -> None:
        if is_asked(self.daemon.name, self.case(0, DOMAIN_ENDS, 0, b"%d\0" % domid)):
            super().destroy(domid)
            self.let_time_pass()

    def let_time_pass(self) -> None:
        """C 4.17 tells a domain from an earlier one of its number only if a transaction has begun (or a node was written)
        between them: else the new one may do what the old one might."""
        self.admin.abort(self.admin.start())
        self.admin.forget()

    def leave(self) -> None:
        """Each example has a daemon of its own: they start quickly, and a domain that comes again finds nothing old."""
        if self.daemon.running():
            os.kill(self.daemon.pid, signal.SIGKILL)  # an open transaction keeps oxenstored from ending
        self.spent = True
        super().leave()

    def case(self, number: int, op: int, tx_id: int, payload: bytes) -> Case:
        by = self.model.connections.get(number)
        return Case(op, tx_id, payload, self.model, None if by is None else by.transactions.get(tx_id))

    def ask(self, number: int, op: int, tx_id: int, payload: bytes, cuts: int = 0) -> bytes | str:
        if not is_asked(self.daemon.name, self.case(number, op, tx_id, payload)):
            return "not asked"
        answer = super().ask(number, op, tx_id, payload, cuts)
        if op == reference.RELEASE:
            self.let_time_pass()
        return answer


class OracleMachine(RunningMachine):
    """Another example, another daemon."""

    def begin_with(self) -> Oracle:
        self.bring_up()
        return Oracle(self.daemon, self.guests)

    def forgives(self, disagreement: Disagreement) -> bool:
        oracle = cast(Oracle, self.all)
        return is_forgiven(self.daemon.name, oracle.case(*oracle.last), disagreement)


@pytest.mark.parametrize("kind", [CXenstored, OXenstored], ids=["c", "oxenstored"])
def test_xens_own_daemons_are_as_the_model_says(kind: type[Daemon]) -> None:
    reason = kind.available()
    if reason is not None:
        pytest.skip(reason)
    with short_run_dir() as run_dir, kind(run_dir) as daemon:
        play(OracleMachine, daemon, 10, shrink=False)
