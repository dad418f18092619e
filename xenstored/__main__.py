"""`xenstored`: starts State, which starts Logic."""

import logging
import os
import signal
import socket
import sys
import time
from typing import NamedTuple
from zlib import crc32

from recovery_box import custody, fdstore
from recovery_box.box import Box, BoxError, shared_memory_directory
from recovery_box.journal import Consumer, JournalCorrupt
from xenstore_logic.control import TRACE_FILE, TRACE_SWITCH
from xenstore_logic.process import run_logic
from xenstore_logic.rings import EVENT_TIMEOUT
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.keeper import BACKLOG, Keeper
from xenstore_state.recovered import recover
from xenstore_state.repetition import Recovered
from xenstore_state.restarts import POLICY
from xenstore_state.succession import SIGNALS
from xenstore_state.survival import CONNECTION, TRIES, Survival, count_attempt, forget
from xenstored import guardian, service
from xenstored.linux_xen import LinuxXen
from xenstored.options import OptionError, Options, parse
from xenstored.simulated_xen import SimulatedXen

log = logging.getLogger("xenstored")

BOX, LISTENER, EVENTS = "box", "listen", "evtchn"
"""Names under which descriptors are kept; events have their domain port behind the name."""
SYSTEMD_STORE = "FDSTORE"
"""Where systemd (from 254 on, and any unit file) says how many descriptors it keeps."""
HASH_SEED = "PYTHONHASHSEED"
XEN_FILES = ("/dev/xen/evtchn", "/dev/xen/gntdev", "/dev/xen/privcmd")


class CannotStart(Exception):
    """The daemon cannot run here; the text says why."""


def main() -> int:
    """The command.  Returns the exit status."""
    _hash_unpredictably()
    pipe = -1
    try:
        inherited = _inherit()
        options = parse(sys.argv[1:], dict(os.environ))
        hypervisor = _open_hypervisor(options, inherited.kept)
        if not options.foreground and inherited.guardian is None:
            pipe = service.detach()
        _serve(options, hypervisor, pipe, inherited)
    except service.PidFileLocked as e:
        # Clients can connect, to the other one: the C daemon's exit status for this is 0.
        _fail(pipe, f"another daemon runs: {e} is locked")
        service.announce(pipe)
        return 0
    except (OptionError, CannotStart, BoxError, OSError) as e:
        _fail(pipe, str(e))
        return 1
    return 0


def _hash_unpredictably() -> None:
    """Guests name nodes: whoever knew how names hash could make each of them collide with all others.

    A seed that an environment fixes is dropped, for which this process must start once more.  Raises OSError.
    """
    if os.environ.pop(HASH_SEED, "random") not in ("", "random"):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _fail(pipe: int, why: str) -> None:
    text = f"xenstored: {why}\n"
    if pipe >= 0:
        os.write(pipe, text.encode())
    else:
        sys.stderr.write(text)


class Inherited(NamedTuple):
    """What a State has that was started again."""

    kept: dict[int, str]
    """Descriptors: what each number is.  Empty at an ordinary start."""
    guardian: guardian.Guardian | None
    """Whoever has started it; None at an ordinary start, and by systemd."""
    died: float | None
    """When the State before died, in seconds of the monotonic clock, as far as is known."""


def _inherit() -> Inherited:
    """Takes what was kept for this process, before any other descriptor is opened."""
    inherited, revived = fdstore.inherited(os.environ), guardian.revived(os.environ)
    if revived is None:
        return Inherited(fdstore.settle(inherited)[0], None, None)
    kept, (connected, life) = fdstore.settle(inherited, (revived.socket, revived.life))
    return Inherited(kept, revived.adopt(connected, life), revived.died)


def _open_hypervisor(options: Options, kept: dict[int, str]) -> Hypervisor | None:
    """What serves guests: the devices of a Xen host, a simulated one, or (None) nothing.  Raises `CannotStart`."""
    events = {int(what[len(EVENTS) :]): fd for fd, what in kept.items() if what.startswith(EVENTS)}
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
    goes_on = bool(inherited.kept)
    """Should this State fail, it is started again: what it has made is not cleared away."""
    try:
        _run(options, hypervisor, pipe, made, inherited)
        goes_on = False
    finally:
        for name in made if not goes_on else ():
            _remove(name)
        if pid_file >= 0:
            os.close(pid_file)


def _run(options: Options, hypervisor: Hypervisor | None, pipe: int, made: list[str], inherited: Inherited) -> None:
    """Serves until the daemon is told to end; `made` collects the files that go then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # an end that is asked for must not look like a death
    limit = custody.raise_limit()
    again = BOX in inherited.kept.values()
    recovered = _recover(options) if again else None
    box = Box(_box_path(options), kept=fdstore.number_of(inherited.kept, BOX))
    if again and (recovered is None or not recovered.complete or not _follows(box, recovered)):
        box.clear()
        if hypervisor is not None:
            hypervisor.begin_anew()
    logic_pid_file = os.path.join(options.rundir, "logic.pid")
    made += [box.path, logic_pid_file]
    listener = _listener(options, inherited)
    made.append(options.socket)
    survival = _survival(options, inherited, recovered)
    if survival is not None:
        for what, fd in _to_keep(box, listener, hypervisor):
            survival.keep(what, fd)
        _match_connections(survival, inherited.kept, recovered)
    keeper = Keeper(box, [listener], run_logic, logic_pid_file, limit, hypervisor, survival, recovered)
    if options.watchdog is not None:
        keeper.succession.watchdog = options.watchdog
    keeper.succession.stand_by = options.standby
    if recovered is None:
        _configure(keeper, options)
    log.info("serving on %s, at most %d descriptors", options.socket, limit)

    def ready() -> None:
        service.announce(pipe)
        if survival is not None:
            survival.ready()

    if again:
        _tell_of_return(keeper, recovered, inherited.died)
    try:
        keeper.run(ready)
    except Exception:
        if survival is None:
            raise
        log.exception("State fails")  # which is a death like any other: nothing is cleared away
        logging.shutdown()
        os._exit(1)


# ---- surviving


def _keeper_of_descriptors(options: Options, inherited: Inherited) -> fdstore.FdStore | None:
    """Whoever keeps State's descriptors: the guardian that has started it, systemd, a new guardian, or nobody."""
    address, most = os.environ.get("NOTIFY_SOCKET", ""), os.environ.pop(SYSTEMD_STORE, "")
    if inherited.guardian is not None:
        return inherited.guardian
    if not options.guardian:
        return None
    try:
        if options.foreground and address and most.isdecimal() and int(most):
            del os.environ["NOTIFY_SOCKET"]
            log.info("systemd keeps up to %s descriptors", most)
            return fdstore.at(address, int(most))
        return guardian.start()
    except OSError as e:
        log.error("nobody keeps the descriptors, State would not survive its death: %s", e)
        return None


def _another_guardian(gone: fdstore.FdStore) -> fdstore.FdStore:
    if isinstance(gone, guardian.Guardian):
        gone.end()
    return guardian.start()


def _survival(options: Options, inherited: Inherited, recovered: Recovered | None) -> Survival | None:
    """Not before everything is known to be there: from now on an end without a word is a death."""
    store = _keeper_of_descriptors(options, inherited)
    if store is None:
        return None
    store.kept.update(inherited.kept)
    if recovered is None:
        forget(_files(options))
    replace = _another_guardian if isinstance(store, guardian.Guardian) else None
    return Survival(_files(options), store, replace, complete=recovered is not None and recovered.complete)


def _recover(options: Options) -> Recovered | None:
    """What the State before has known, if anything of it can be used."""
    if count_attempt(_files(options)) > TRIES:
        log.error("State has died again and again over what it knew: everything begins anew")
        return None
    return recover(_files(options))


def _follows(box: Box, recovered: Recovered) -> bool:
    """Whether the journal goes on where what was written down ends.  If not, no connection can go on."""
    try:
        Consumer(box).resume(recovered.sequence, recovered.staged)
    except JournalCorrupt as e:
        log.error("the journal cannot be followed (%s): all connections are closed", e)
        recovered.give_up_connections()
    return recovered.complete


def _match_connections(survival: Survival, kept: dict[int, str], recovered: Recovered | None) -> None:
    """A connection without a descriptor is closed; so is a descriptor without a connection, unless it has just been accepted."""
    sockets = {fd for fd, what in kept.items() if what == CONNECTION}
    connections = [c for c in recovered.store.items.connections if c.socket] if recovered is not None else []
    unknown = sockets - {c.fd for c in connections}
    if recovered is not None and recovered.complete:
        recovered.newcomers = sorted(unknown)
    else:
        for fd in unknown:
            custody.shut_down(fd)
            survival.drop(fd)
            os.close(fd)
    for connection in connections:
        if connection.fd not in sockets and recovered is not None:
            log.error("connection %d has no descriptor any more", connection.id)
            recovered.store.disconnect(connection)
            recovered.store.closed.clear()


def _to_keep(box: Box, listener: socket.socket, hypervisor: Hypervisor | None) -> list[tuple[str, int]]:
    """What is kept beside connections."""
    rest = [(f"{EVENTS}{hypervisor.domain_port}", hypervisor.event_fd)] if hypervisor is not None else []
    return [(BOX, box.fd), (LISTENER, listener.fileno()), *rest]


def _tell_of_return(keeper: Keeper, recovered: Recovered | None, died: float | None) -> None:
    """Tells the log and the operator's list that State is back."""
    took = f" within {(time.monotonic() - died) * 1000:.0f} ms" if died is not None else ""
    if recovered is None:
        outcome = "everything begins anew"
    else:
        outcome = f"{keeper.store.tree.size} nodes, {len(keeper.store.items.connections)} connections"
        outcome += "" if recovered.complete else ", something is lost and all were closed"
    text = f"State has died; {os.getpid()} took over{took}: {outcome}"
    keeper.succession.note(text)
    log.warning("%s", text)


def _files(options: Options) -> str:
    """Where State writes down what it does."""
    directory = os.path.join(os.path.dirname(_box_path(options)), "state-" + os.path.basename(_box_path(options)))
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


def _box_path(options: Options) -> str:
    directory = shared_memory_directory(options.rundir)
    if directory == options.rundir:
        return os.path.join(directory, "recovery-box")
    mark = crc32(os.fsencode(options.rundir))
    return os.path.join(directory, f"xenstored-{os.getuid()}-{mark:08x}")


def _listener(options: Options, inherited: Inherited) -> socket.socket:
    kept = fdstore.number_of(inherited.kept, LISTENER)
    listener = socket.socket(fileno=kept) if kept is not None else _listen(options.socket)
    listener.setblocking(False)
    return listener


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
