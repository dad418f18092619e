"""A simulated Xen: a directory in which emulated domains leave what a hypervisor would know of them.

    domains/<N>              domain N exists.  Its text: empty (running), "shutdown", "crashed" or "dying".  0 always exists
    dom<N>.ring              its ring page, 4096 bytes, mapped by both sides
    dom0.port                the remote port of domain 0's ring as decimal text
    evtchn.sock              datagram socket bound here; messages are two u32: a domain and its port ("look at my ring"), or
                             0xffffffff and 3 (a domain has changed)
    g<domid>.<port>.sock     datagram socket of a domain; it gets the same eight bytes when it is notified

The same directory drives Debian's daemons under the tests' shim.  Not simulated: masking of events, grant references.
"""

import errno
import os
import socket
import struct
from typing import Final

from xenstore_state.hypervisor import PAGE_SIZE, DomainFacts
from xenstored.mapping import Mapping

_EVENT: Final = struct.Struct("=II")
_VIRQ_SENDER: Final = 0xFFFFFFFF
_VIRQ_DOM_EXC: Final = 3
_TAKEN_BYTES: Final = 32 * _EVENT.size
"""Of events taken at once."""
_DOMAIN_PORT: Final = 1
_SO_SNDBUFFORCE: Final = 32
_EVENTS_BYTES: Final = 64 << 20


_SHUT_DOWN: Final = frozenset({b"shutdown", b"crashed"})
_STATE_MAX: Final = 16


def _running(domid: int, unique_id: int) -> DomainFacts:
    return DomainFacts(domid, unique_id, shutdown=False, gone=False)


_DOMAIN_0: Final = _running(0, 1)


def _bound_socket(path: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    _enlarge(bound)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    bound.bind(path)
    return bound


def _enlarge(sender: socket.socket) -> None:
    """Room for unread events of many domains: what one does not take must not keep others from theirs."""
    try:
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _EVENTS_BYTES)
    except PermissionError:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _EVENTS_BYTES)


class SimulatedXen:
    """Implements `xenstore_state.hypervisor.Hypervisor`."""

    def __init__(self, directory: str, kept: int | None = None) -> None:
        """`kept` is the descriptor of events that a State had which died.

        Raises OSError when it is not such a directory, or may not be written.
        """
        self._directory = directory
        self._domains = os.path.join(directory, "domains")
        os.makedirs(self._domains, exist_ok=True)
        self._socket = (
            _bound_socket(os.path.join(directory, "evtchn.sock")) if kept is None else socket.socket(fileno=kept)
        )
        self._socket.setblocking(False)
        self.event_fd = self._socket.fileno()
        self.domain_port = _DOMAIN_PORT
        self._ports: dict[int, tuple[int, int]] = {}
        self._by_event: dict[tuple[int, int], int] = {(_VIRQ_SENDER, _VIRQ_DOM_EXC): _DOMAIN_PORT}
        self._addresses: dict[int, tuple[bytes, str]] = {}
        self._next_port = _DOMAIN_PORT + 1
        self._maps: dict[int, Mapping] = {}

    # ---- State's half

    def domains(self) -> dict[int, DomainFacts]:
        """All domains that exist."""
        found = {0: _DOMAIN_0}
        with os.scandir(self._domains) as entries:
            for entry in entries:
                if entry.name.isdecimal():
                    facts = self._facts(int(entry.name), entry)
                    if facts is not None:
                        found[facts.domid] = facts
        return found

    def _facts(self, domid: int, entry: os.DirEntry[str]) -> DomainFacts | None:
        try:
            return self.domain(domid) if entry.stat().st_size else _running(domid, entry.inode())
        except FileNotFoundError:
            return None

    def domain(self, domid: int) -> DomainFacts | None:
        """One domain, if it exists; its file's inode is what tells it from another of this domid."""
        try:
            fd = os.open(f"{self._domains}/{domid}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return _DOMAIN_0 if domid == 0 else None
        try:
            facts = _running(domid, os.fstat(fd).st_ino)
            return facts._replace(shutdown=True) if os.read(fd, _STATE_MAX) in _SHUT_DOWN else facts
        finally:
            os.close(fd)

    def xenbus_port(self) -> int:
        """The remote port of domain 0's ring."""
        try:
            with open(os.path.join(self._directory, "dom0.port"), encoding="ascii") as f:
                return int(f.read())
        except (FileNotFoundError, ValueError):
            return 0

    def bind(self, domid: int, remote_port: int) -> int:
        """Binds an event channel."""
        port = self._next_port
        self._next_port += 1
        self.know_port(port, domid, remote_port)
        return port

    def unbind(self, port: int) -> None:
        """Gives a port up."""
        event = self._ports.pop(port, None)
        if event is not None and self._by_event.get(event) == port:
            del self._by_event[event]
        self._addresses.pop(port, None)

    def begin_anew(self) -> None:
        """Nothing is bound but what this object knows."""

    def before_fork(self) -> None:
        """Nothing that a dead Logic had mapped is left."""

    # ---- Logic's half

    def in_logic(self) -> None:
        """A directory gives nobody less than another."""

    def know_port(self, port: int, domid: int, remote_port: int) -> None:
        """A port that is bound."""
        self._ports[port] = domid, remote_port
        self._next_port = max(self._next_port, port + 1)
        self._by_event[domid, remote_port] = port
        address = os.path.join(self._directory, f"g{domid}.{remote_port}.sock")
        self._addresses[port] = _EVENT.pack(domid, remote_port), address

    def map_ring(self, domid: int) -> memoryview:
        """A domain's ring page."""
        if self.domain(domid) is None:
            raise FileNotFoundError(f"there is no domain {domid}")
        fd = os.open(f"{self._directory}/dom{domid}.ring", os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < PAGE_SIZE:
                raise OSError(f"the ring of domain {domid} is no page")
            self._maps[domid] = Mapping(PAGE_SIZE, fd)
        finally:
            os.close(fd)
        return self._maps[domid].view

    def unmap_ring(self, domid: int) -> None:
        """Lets go of a page, if it is mapped; all views of it must have been released."""
        page = self._maps.pop(domid, None)
        if page is not None:
            page.close()

    def receive(self, into: memoryview) -> None:
        """Takes what is there, each event straight into the buffer.

        The socket holds a few datagrams only, and a domain that finds it full may not ask twice: one event in each turn
        would let a busy domain keep others from being noticed.
        """
        try:
            for start in range(0, _TAKEN_BYTES, _EVENT.size):
                os.readv(self.event_fd, [into[start : start + _EVENT.size]])
        except BlockingIOError:
            pass

    def ports(self, received: memoryview) -> list[int]:
        """The ports that were taken."""
        known = self._by_event
        return list({known[event]: None for event in _EVENT.iter_unpack(received[:_TAKEN_BYTES]) if event in known})

    def forget(self, received: memoryview, port: int) -> None:
        """Takes one port out of what `receive` took, and leaves the others."""
        for start in range(0, _TAKEN_BYTES, _EVENT.size):
            if self._by_event.get(_EVENT.unpack_from(received, start)) == port:
                received[start : start + _EVENT.size] = bytes(_EVENT.size)

    def unmask(self, ports: list[int]) -> None:
        """Nothing is masked here."""

    def notify(self, port: int) -> None:
        """Sends an event; a domain whose socket is full, or gone, has all it needs to look."""
        found = self._addresses.get(port)
        if found is None:
            raise OSError(errno.ENOTCONN, "the port is not bound")
        event, address = found
        try:
            self._socket.sendto(event, address)
        except OSError:
            pass
