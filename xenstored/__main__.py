"""`xenstored`: starts State, which starts Logic."""

import logging
import os
import signal
import socket
import sys
import time

from recovery_box import custody, fdstore
from recovery_box.box import Box, BoxError
from xenstore_logic import trace
from xenstore_logic.process import run_logic
from xenstore_logic.rings import EVENT_TIMEOUT
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.keeper import BACKLOG, Keeper
from xenstore_state.restarts import POLICY
from xenstore_state.succession import SIGNALS
from xenstore_state.survival import Survival, forget, let_go, remove
from xenstored import guardian, service
from xenstored.comeback import BOX, EVENTS, LISTENER, CannotStart, ComeBack, Inherited, come_back, inherit, make_ours
from xenstored.linux_xen import LinuxXen
from xenstored.options import OptionError, Options, parse
from xenstored.simulated_xen import SimulatedXen

log = logging.getLogger("xenstored")

SYSTEMD_STORE = "FDSTORE"
"""Where systemd (from 254 on, and any unit file) says how many descriptors it keeps."""
HASH_SEED = "PYTHONHASHSEED"
XEN_FILES = ("/dev/xen/evtchn", "/dev/xen/gntdev", "/dev/xen/privcmd")


def main() -> int:
    """The command.  Returns the exit status."""
    _hash_unpredictably()
    pipe, inherited = -1, None
    try:
        inherited = inherit()
        options = parse(sys.argv[1:], dict(os.environ))
        hypervisor = _open_hypervisor(options, inherited.kept)
        if not options.foreground:
            pipe = service.detach() if inherited.guardian is None else -1
            service.leave_directory()
        _serve(options, hypervisor, pipe, inherited)
    except service.PidFileLocked as e:
        # Clients can connect, to the other one: the C daemon's exit status for this is 0.
        _fail(pipe, f"another daemon runs: {e} is locked")
        service.announce(pipe)
        return 0
    except (OptionError, CannotStart, BoxError, OSError) as e:
        if inherited is not None and inherited.again:  # nobody sees what this one says, and it will be tried again
            service.set_up_logging(foreground=False)
            log.error("State cannot be started again: %s", e)
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
    goes_on = inherited.again
    """Should this State fail, it is started again: what it has made is not cleared away."""
    try:
        _run(options, hypervisor, pipe, made, inherited)
        goes_on = False
    finally:
        for name in made if not goes_on else ():
            remove(name)
        if pid_file >= 0:
            os.close(pid_file)


def _run(options: Options, hypervisor: Hypervisor | None, pipe: int, made: list[str], inherited: Inherited) -> None:
    """Serves until the daemon is told to end; `made` collects the files that go then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # an end that is asked for must not look like a death
    limit = custody.raise_limit()
    back = come_back(options.rundir, inherited)
    if inherited.again and not back.complete and hypervisor is not None:
        hypervisor.begin_anew()
    logic_pid_file = os.path.join(options.rundir, "logic.pid")
    made += [back.box.path, logic_pid_file]
    listener = _listener(options, inherited)
    made.append(options.socket)
    store = _keeper_of_descriptors(options, inherited)
    comes_back = inherited.again
    """Whether this State's end is a death like any other, of which nothing is lost: nothing is cleared away then."""

    def ready() -> None:
        nonlocal comes_back
        service.announce(pipe)
        if survival is not None:
            survival.ready()
            comes_back = True

    try:
        survival = _survival(back, inherited, store) if store is not None else None
        if survival is not None:
            for what, fd in _to_keep(back.box, listener, hypervisor):
                survival.keep(what, fd)
        back.match_connections(inherited.kept, survival)
        keeper = Keeper(back.box, [listener], run_logic, logic_pid_file, limit, hypervisor, survival, back.recovered)
        if options.watchdog is not None:
            keeper.succession.watchdog = options.watchdog
        keeper.succession.stand_by = options.standby
        if back.recovered is None:
            _configure(keeper, options)
        log.info("serving on %s, at most %d descriptors", options.socket, limit)
        if inherited.again:
            _tell_of_return(keeper, back, inherited.died)
        keeper.run(ready)
    except Exception:
        if store is None or not comes_back:
            if store is not None:
                let_go(store)  # who has not begun to serve is not to be started by anybody but who tried
            raise
        log.exception("State fails")
        logging.shutdown()
        os._exit(1)


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


def _survival(back: ComeBack, inherited: Inherited, store: fdstore.FdStore) -> Survival | None:
    """Not before everything is known to be there: from now on an end without a word is a death.

    A State that came back goes on without, if nothing can be written down any more.  Raises OSError at an ordinary start.
    """
    make_ours(back.directory)
    store.kept.update(inherited.kept)
    if back.recovered is None:
        forget(back.directory)
    replace = _another_guardian if isinstance(store, guardian.Guardian) else None
    try:
        survival = Survival(back.directory, store, replace, complete=back.complete)
    except OSError as e:
        if not inherited.again:
            raise
        log.error("State would not survive its death from now on: %s", e)
        let_go(store)
        forget(back.directory)
        return None
    if back.unusable >= 0:
        survival.drop(back.unusable)
    return survival


def _to_keep(box: Box, listener: socket.socket, hypervisor: Hypervisor | None) -> list[tuple[str, int]]:
    """What is kept beside connections."""
    rest = [(f"{EVENTS}{hypervisor.domain_port}", hypervisor.event_fd)] if hypervisor is not None else []
    return [(BOX, box.fd), (LISTENER, listener.fileno()), *rest]


def _tell_of_return(keeper: Keeper, back: ComeBack, died: float | None) -> None:
    """Tells the log and the operator's list that State is back."""
    took = f" within {(time.monotonic() - died) * 1000:.0f} ms" if died is not None else ""
    if back.recovered is None:
        outcome = "everything begins anew"
    else:
        outcome = f"{keeper.store.tree.size} nodes, {len(keeper.store.items.connections)} connections"
        outcome += "" if back.complete else ", something is lost and all were closed"
    text = f"State has died; {os.getpid()} took over{took}: {outcome}"
    keeper.succession.note(text)
    log.warning("%s", text)


def _listener(options: Options, inherited: Inherited) -> socket.socket:
    kept = fdstore.number_of(inherited.kept, LISTENER)
    listener = socket.socket(fileno=kept) if kept is not None else _listen(options.socket)
    listener.setblocking(False)
    return listener


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    remove(path)
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
        settings.insert(trace.FILE, os.path.join("/var/lib/xen/xenstore", options.trace_file))
    for switch, on in options.trace_switches.items():
        settings.insert(trace.SWITCH + switch, "on" if on else "off")


if __name__ == "__main__":
    sys.exit(main())
