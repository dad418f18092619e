"""`xenstored`: starts State, which starts Logic."""

import hashlib
import logging
import os
import socket
import sys
from typing import NamedTuple

from recovery_box import custody, fdstore
from recovery_box.box import Box, BoxError, shared_memory_directory
from xenstore_logic.control import TRACE_FILE, TRACE_SWITCH
from xenstore_logic.process import run_logic
from xenstore_logic.rings import EVENT_TIMEOUT
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.keeper import BACKLOG, Keeper
from xenstore_state.restarts import POLICY
from xenstore_state.survival import Recovered, Survival, forget, recover
from xenstored import guardian, service
from xenstored.linux_xen import LinuxXen
from xenstored.options import OptionError, Options, parse
from xenstored.simulated_xen import SimulatedXen

log = logging.getLogger("xenstored")

BOX, LISTENER, EVENTS = "box", "listen", "evtchn"
"""Names under which descriptors are kept; connections are `c` and their id, events have their domain port behind the name."""
XEN_FILES = ("/dev/xen/evtchn", "/dev/xen/gntdev", "/dev/xen/privcmd")


class CannotStart(Exception):
    """The daemon cannot run here; the text says why."""


def main() -> int:
    """The command.  Returns the exit status."""
    pipe = -1
    try:
        inherited = fdstore.inherited(os.environ)
        keeper_end = guardian.adopt(fdstore.above(inherited))
        kept = fdstore.settle(inherited)
        options = parse(sys.argv[1:], dict(os.environ))
        hypervisor = _open_hypervisor(options, kept)
        if not options.foreground and keeper_end is None:
            pipe = service.detach()
        _serve(options, hypervisor, pipe, Inherited(kept, keeper_end))
    except service.PidFileLocked as e:
        # Clients can connect, to the other one: the C daemon's exit status for this is 0.
        _fail(pipe, f"another daemon runs: {e} is locked")
        service.announce(pipe)
        return 0
    except (OptionError, CannotStart, BoxError, OSError) as e:
        _fail(pipe, str(e))
        return 1
    return 0


def _fail(pipe: int, why: str) -> None:
    text = f"xenstored: {why}\n"
    if pipe >= 0:
        os.write(pipe, text.encode())
    else:
        sys.stderr.write(text)


class Inherited(NamedTuple):
    """What a State has that the guardian has started again."""

    kept: dict[str, int]
    """Descriptors by name."""
    guardian: socket.socket | None
    """The way to the guardian; None at an ordinary start."""


def _open_hypervisor(options: Options, kept: dict[str, int]) -> Hypervisor | None:
    """What serves guests: the devices of a Xen host, a simulated one, or (None) nothing.  Raises `CannotStart`."""
    events = {int(name[len(EVENTS) :]): fd for name, fd in kept.items() if name.startswith(EVENTS)}
    domain_port, event_fd = next(iter(events.items()), (0, None))
    if options.simulated_xen is not None:
        return SimulatedXen(options.simulated_xen, event_fd)
    if not options.domain_init:
        return None
    missing = [name for name in XEN_FILES if not os.path.exists(name)]
    if missing:
        raise CannotStart(
            f"this is not a Xen host: {', '.join(missing)} missing; with -D (--no-domain-init) sockets are served without Xen"
        )
    return LinuxXen(event_fd, domain_port)


def _serve(options: Options, hypervisor: Hypervisor | None, pipe: int, inherited: Inherited) -> None:
    service.set_up_logging(foreground=options.foreground)
    for note in options.notes:
        log.warning("%s", note)
    os.makedirs(options.rundir, mode=0o755, exist_ok=True)
    pid_file = service.write_pid_file(options.pid_file) if options.pid_file else -1
    made = [options.pid_file] if options.pid_file else []
    try:
        _run(options, hypervisor, pipe, made, inherited)
    finally:
        for name in made:
            _remove(name)
        if pid_file >= 0:
            os.close(pid_file)


def _run(options: Options, hypervisor: Hypervisor | None, pipe: int, made: list[str], inherited: Inherited) -> None:
    """Serves until the daemon is told to end; `made` collects the files that go then."""
    limit = custody.raise_limit()
    kept = inherited.kept
    state_end = inherited.guardian or (guardian.start() if options.guardian else None)
    recovered = _recover(options) if inherited.guardian is not None else None
    anew = inherited.guardian is not None and recovered is None
    box = Box(_box_path(options), kept=kept.get(BOX), anew=anew)
    logic_pid_file = os.path.join(options.rundir, "logic.pid")
    made += [box.path, logic_pid_file]
    listener = socket.socket(fileno=kept[LISTENER]) if LISTENER in kept else _listen(options.socket)
    listener.setblocking(False)
    made.append(options.socket)
    survival = None
    if state_end is not None:
        if anew:
            forget(_files(options))
        survival = Survival(_files(options), fdstore.FdStore(state_end))
        if inherited.guardian is None:
            _hand_to_guardian(survival.keeper, box, listener, hypervisor)
        else:
            _match_connections(survival.keeper, kept, recovered)
    if anew and hypervisor is not None:
        hypervisor.begin_anew()
    keeper = Keeper(box, [listener], run_logic, logic_pid_file, limit, hypervisor, survival, recovered)
    if options.watchdog is not None:
        keeper.watchdog = options.watchdog
    if recovered is None:
        _configure(keeper, options)
    log.info("serving on %s, at most %d descriptors", options.socket, limit)

    def ready() -> None:
        service.announce(pipe)
        if survival is not None:
            survival.ready()

    keeper.run(ready)


def _recover(options: Options) -> Recovered | None:
    """What the State before has known, if anything of it can be used."""
    if os.environ.pop(guardian.FRESH_VARIABLE, None):
        log.error("State has died again and again over what it knew: everything begins anew")
        return None
    return recover(_files(options))


def _match_connections(keeper: fdstore.FdStore, kept: dict[str, int], recovered: Recovered | None) -> None:
    """A connection without a descriptor, or a descriptor without a connection, is closed."""
    sockets = {name: fd for name, fd in kept.items() if name[0] == "c" and name[1:].isdecimal()}
    connections = [c for c in recovered.store.items.connections if c.socket] if recovered is not None else []
    for name in sockets.keys() - {f"c{c.id}" for c in connections}:
        custody.shut_down(sockets[name])
        keeper.drop(name, sockets[name])
        os.close(sockets[name])
    for connection in connections:
        if recovered is not None and f"c{connection.id}" not in sockets:
            log.error("connection %d has no descriptor any more", connection.id)
            recovered.store.disconnect(connection)
            recovered.store.closed.clear()


def _hand_to_guardian(
    keeper: fdstore.FdStore, box: Box, listener: socket.socket, hypervisor: Hypervisor | None
) -> None:
    keeper.keep(BOX, box.fd)
    keeper.keep(LISTENER, listener.fileno())
    if hypervisor is not None:
        keeper.keep(f"{EVENTS}{hypervisor.domain_port}", hypervisor.event_fd)


def _files(options: Options) -> str:
    """Where State writes down what it does."""
    directory = os.path.join(os.path.dirname(_box_path(options)), "state-" + os.path.basename(_box_path(options)))
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


def _box_path(options: Options) -> str:
    directory = shared_memory_directory(options.rundir)
    if directory == options.rundir:
        return os.path.join(directory, "recovery-box")
    mark = hashlib.sha256(options.rundir.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return os.path.join(directory, f"xenstored-{os.getuid()}-{mark}")


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    _remove(path)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as e:
        raise CannotStart(f"{path}: {e.strerror or e}") from None
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener


def _configure(keeper: Keeper, options: Options) -> None:
    keeper.store.domains.quotas.update(options.quotas)
    for domain in keeper.store.domains.known:
        domain.quotas.update(options.quotas)
    keeper.store.domains.keep_orphans = options.keep_orphans
    settings = keeper.store.items.settings
    if options.restart is not None:
        settings.insert(POLICY, options.restart)
    if options.event_seconds is not None:
        settings.insert(EVENT_TIMEOUT, options.event_seconds)
    if options.trace_file is not None:
        settings.insert(TRACE_FILE, os.path.join("/var/lib/xen/xenstore", options.trace_file))
    for switch, on in options.trace_switches.items():
        settings.insert(TRACE_SWITCH + switch, "on" if on else "off")


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


if __name__ == "__main__":
    sys.exit(main())
