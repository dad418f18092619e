"""The daemon that cases are played against: one of the three that this machine can start, or whatever listens on a socket.

Knows how it is started again when a case has ended it; knows nothing of cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.player import FEATURES, Player
from tests.conformance.transcript import LIKE, Case
from tests.conformance.wire import Client, Closed, Op
from tests.conformance.xen import SimulatedXen
from tests.oracle.daemons import EACH_REQUEST, CXenstored, Daemon, OurDaemon, OXenstored

KINDS: dict[str, type[Daemon]] = {"ours": OurDaemon, "c": CXenstored, "ocaml": OXenstored}
"""The daemons that this machine can start."""
LIKE_OF: dict[type[Daemon], str] = {OurDaemon: "ours", CXenstored: "c", OXenstored: "oxenstored"}


@dataclass(frozen=True)
class UnderTest:
    """A daemon that runs; `process` is None when only its socket is known."""

    socket: Path
    process: Daemon | None
    like: str = ""
    """The kind of daemon it should answer like, a key of `LIKE`; that of the process when empty."""
    xen_dir: Path | None = None
    """The simulated Xen that a daemon without a process runs on."""
    dom0_ring: Callable[[], Client] | None = None

    @property
    def kind(self) -> str:
        """What it should answer like; what is only a socket, as the cases say first."""
        return self.like or ("strict" if self.process is None else LIKE_OF[type(self.process)])

    @property
    def xen(self) -> SimulatedXen | None:
        """The simulated Xen it runs on."""
        folder = self.xen_dir if self.process is None else self.process.xen_dir
        return None if folder is None else SimulatedXen(folder)

    def player(self) -> Player:
        """Plays cases against it."""
        features = FEATURES[self.kind]
        return Player(self.socket, self.xen, LIKE[self.kind], features, self.dom0_ring, sparse=EACH_REQUEST)

    def serves(self) -> bool:
        """Whether it is alive and answers."""
        if self.process is not None and not self.process.running():
            return False
        try:
            with Client(self.socket) as client:
                client.call(Op.GET_DOMAIN_PATH, b"0\0")
        except (OSError, Closed):
            return False
        return True

    def wants_to_be_fresh(self, case: Case) -> bool:
        """Whether the case should find a daemon that nobody has talked to.

        C 4.17 takes what is no number for domain 0, so that a malformed INTRODUCE of another case moves domain 0's ring
        to another port.  On the simulated Xen, oxenstored does not hear a domain whose number it has introduced before.
        """
        if self.kind == "c" and "dom0-ring" in case.actors():
            return True
        return case.alone or (self.kind == "oxenstored" and case.needs_rings())

    def begin_anew(self) -> None:
        """A daemon that nobody has talked to, if it can be started from here."""
        if self.process is not None:
            self.process.stop()
            self.process.start()
