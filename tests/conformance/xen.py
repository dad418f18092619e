"""A simulated Xen and its guests: what a test needs to be a domain that talks to a daemon through a ring page.

A simulated Xen is a folder.  `domains/<N>` says that domain N exists (its text: empty for running, or `shutdown`,
`crashed`, `dying`); `dom<N>.ring` is its page, shared by guest and daemon; event channels are datagrams between the
daemon's `evtchn.sock` and the guest's `g<N>.<port>.sock`.  Every daemon under test runs on such a folder.

`Guest` offers everything that `Client` does, over the page.  It keeps the ring's rules (one aligned store an index,
bytes before the index) unless told otherwise, and waits for the daemon's events as a real guest does: a daemon that
moves bytes and notifies nobody fails the test.  Not modelled: masked and merged events, grants, gfns.
"""

from __future__ import annotations

import mmap
import select
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from tests.conformance.wire import PATIENCE, Client, Op, strings

PAGE = 4096
RING = 1024
REQUESTS, RESPONSES = 0, RING
"""Where the two data areas begin."""
FIELDS = {
    name: 2 * RING // 4 + number
    for number, name in enumerate(
        ("req_cons", "req_prod", "rsp_cons", "rsp_prod", "features", "connection", "error", "evtchn_port")
    )
}
"""The page's words, counted from its beginning."""
WORD = 0xFFFFFFFF
EVENT = struct.Struct("<II")
VIRQ_DOM_EXC = EVENT.pack(WORD, 3)
NOTICE_SECONDS = PATIENCE
"""How much later than its bytes a daemon's event may come."""


class SimulatedXen:
    """The folder a daemon takes for its hypervisor; makes domains, changes and ends them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.domains = path / "domains"
        self.domains.mkdir(parents=True, exist_ok=True)

    def create(self, domid: int, *, port: int = 7) -> Guest:
        """A domain that exists, with a page of zeros; nobody has introduced it."""
        page = self.ring(domid)
        page.unlink(missing_ok=True)  # a daemon may still hold the page of an earlier domain
        page.write_bytes(bytes(PAGE))
        guest = Guest(self, domid, port)
        (self.domains / str(domid)).write_text("")
        return guest

    def dom0_ring(self) -> Guest:
        """Domain 0's own ring, which the daemon has mapped from its start."""
        return Guest(self, 0, int((self.path / "dom0.port").read_text()))

    def set_state(self, domid: int, text: str) -> None:
        """Empty for running, or `shutdown`, `crashed`, `dying`."""
        (self.domains / str(domid)).write_text(text)  # in place: another file would be another domain
        self.virq()

    def destroy(self, domid: int, *, quietly: bool = False) -> None:
        """Ends the domain; `quietly` lets nobody know."""
        (self.domains / str(domid)).unlink(missing_ok=True)
        if not quietly:
            self.virq()

    def virq(self) -> None:
        """Tells the daemon that the state of some domain changed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            self.notify(sender, VIRQ_DOM_EXC)

    def notify(self, sender: socket.socket, event: bytes) -> None:
        """An event for the daemon; lost, as on Xen, when none is bound."""
        sender.settimeout(PATIENCE)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            sender.sendto(event, str(self.path / "evtchn.sock"))

    def ring(self, domid: int) -> Path:
        """The file that is the domain's page."""
        return self.path / f"dom{domid}.ring"


class Guest(Client):
    """A domain at its end of the ring.  To stop reading, don't call `receive` (nor what waits for replies)."""

    def __init__(self, xen: SimulatedXen, domid: int, port: int) -> None:
        self._begin()
        self.xen = xen
        self.domid = domid
        self.port = port
        with xen.ring(domid).open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), PAGE)
        self.words = memoryview(self.page).cast("I")  # one store an index; struct would write byte by byte
        self.address = xen.path / f"g{domid}.{port}.sock"
        self.address.unlink(missing_ok=True)
        self.events_in = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.events_in.bind(str(self.address))
        self.open = True

    def close(self) -> None:
        """Gives up page and event channel; the domain itself is Xen's matter."""
        if not self.open:
            return
        self.open = False
        self.words.release()
        self.page.close()
        self.events_in.close()
        self.address.unlink(missing_ok=True)
        if self.domid != 0:
            self.xen.ring(self.domid).unlink(missing_ok=True)

    # ---- the page as it is

    def field(self, name: str) -> int:
        """A word of the page: an index, `features`, `connection`, `error` or `evtchn_port`."""
        return self.words[FIELDS[name]]

    def set_field(self, name: str, value: int) -> None:
        """Stores a word of the page, sensible or not (modulo 2**32)."""
        self.words[FIELDS[name]] = value & WORD

    def kick(self) -> None:
        """Notifies the daemon."""
        self.xen.notify(self.events_in, EVENT.pack(self.domid, self.port))

    # ---- bytes

    def put_bytes(self, data: bytes, timeout: float = PATIENCE) -> int:
        """Puts bytes into the ring as room comes, reading nothing; says how many were put within the time."""
        return self._put(data, timeout, reading=False)

    def send_raw(self, data: bytes, *, timeout: float = PATIENCE) -> None:
        """Sends bytes as they are; takes answers in (for `receive`) as long as the ring is full."""
        if self._put(data, timeout, reading=True) < len(data):
            raise TimeoutError("the daemon does not take requests from the ring")

    def receive_raw(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while not (data := self._take()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("nothing in the ring within the time given")
            self._wait(left, reading=True, writing=False)
        return data

    def _put(self, data: bytes, timeout: float, *, reading: bool) -> int:
        deadline = time.monotonic() + timeout
        done = 0
        while True:
            done += self._put_what_fits(data[done:])
            left = deadline - time.monotonic()
            if done == len(data) or left <= 0:
                return done
            answers = self._take() if reading else b""
            self.pending += answers
            if not answers:
                self._wait(left, reading=reading, writing=True)

    def _put_what_fits(self, data: bytes) -> int:
        producer = self.field("req_prod")
        data = data[: self._room()]
        if data:
            first = data[: RING - producer % RING]
            at = REQUESTS + producer % RING
            self.page[at : at + len(first)] = first
            self.page[REQUESTS : REQUESTS + len(data) - len(first)] = data[len(first) :]
            self.set_field("req_prod", producer + len(data))
            self.kick()
        return len(data)

    def _take(self) -> bytes:
        """What is in the ring now, as far as it wraps."""
        consumer = self.field("rsp_cons")
        at = consumer % RING
        data = self.page[RESPONSES + at : RESPONSES + min(at + self._unread(), RING)]
        if data:
            self.set_field("rsp_cons", consumer + len(data))
            self.kick()
        return data

    def _room(self) -> int:
        return max(RING - ((self.field("req_prod") - self.field("req_cons")) & WORD), 0)

    def _unread(self) -> int:
        unread = (self.field("rsp_prod") - self.field("rsp_cons")) & WORD
        return unread if unread <= RING else 0

    def _wait(self, seconds: float, *, reading: bool, writing: bool) -> None:
        """Until an event comes or the time is over; a daemon that moves an index sends one."""
        if self._event_within(seconds):
            return
        if (reading and self._unread()) or (writing and self._room()):
            assert self._event_within(NOTICE_SECONDS), "the daemon moved an index of the ring and notified nobody"

    def _event_within(self, seconds: float) -> bool:
        came = bool(select.select([self.events_in], [], [], seconds)[0])
        self.events_in.setblocking(False)
        with suppress(BlockingIOError):
            while came:
                self.events_in.recv(EVENT.size)
        return came


def wait_until_released(client: Client, domid: int) -> None:
    """Returns when the daemon has let go of a domain that is no more."""
    deadline = time.monotonic() + PATIENCE
    while client.call(Op.IS_DOMAIN_INTRODUCED, strings(domid)) == b"T\0":
        assert time.monotonic() < deadline, f"domain {domid} is gone, and the daemon does not notice"
        time.sleep(0.001)
