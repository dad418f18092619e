"""The blocking client: `Client`, its transactions and its watches.

All knowledge of the protocol is in `steps` and `session`; this module waits.  A client and what it hands out belong to
one thread at a time: threads take a client each.
"""

import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

from protocol.client import steps
from protocol.client.failures import StoreUnavailable
from protocol.client.link import BUSY_DELAY, Link, open_store
from protocol.client.locate import find_store
from protocol.client.retry import ATTEMPTS, delays
from protocol.client.session import EVENT_LIMIT, Session, Subscription, WatchEvent
from protocol.client.steps import PermissionLike, Request, Steps, Text
from protocol.errors import StoreError
from protocol.permissions import Permission

T = TypeVar("T")


class Nodes:
    """What can be done to nodes, on a `Client` directly or inside a `Transaction`.

    Paths are `str` or `bytes`, absolute (`/local/domain/1/name`) or relative to the caller's own domain (`name`).  Every
    method raises the `StoreError` that the daemon answers, `RequestTooLong` (also a StoreError: E2BIG) for what does not
    fit into one message, and `ConnectionLost`.
    """

    def _perform(self, operation: Steps[T]) -> T:
        raise NotImplementedError

    def read(self, path: Text) -> bytes:
        """The value of a node, byte for byte."""
        return self._perform(steps.read(path))

    def write(self, path: Text, value: Text) -> None:
        """Sets the value of a node; makes the node and its parents if they are missing.  A `str` is sent as UTF-8."""
        self._perform(steps.write(path, value))

    def mkdir(self, path: Text) -> None:
        """Makes a node and its parents; leaves an existing one as it is."""
        self._perform(steps.mkdir(path))

    def rm(self, path: Text) -> None:
        """Removes a node and everything below it.  A missing node is fine, a missing parent is ENOENT."""
        self._perform(steps.rm(path))

    def exists(self, path: Text) -> bool:
        """Whether there is such a node.  Raises EACCES where the caller may not know."""
        return self._perform(steps.exists(path))

    def directory(self, path: Text) -> list[str]:
        """The names of a node's children, however many, in the daemon's order.

        A list that exceeds a message is fetched in parts, and anew if the node changes meanwhile; EAGAIN if it never
        holds still.
        """
        return self._perform(steps.directory(path))

    def get_perms(self, path: Text) -> list[Permission]:
        """The permission list of a node: its first entry names the owner and what everybody else may do."""
        return self._perform(steps.get_perms(path))

    def set_perms(self, path: Text, permissions: Iterable[PermissionLike]) -> None:
        """Replaces the permission list: `client.set_perms("/a", ["n0", "r7"])`, or `Permission`s."""
        self._perform(steps.set_perms(path, permissions))


class Client(Nodes):
    """A connection to XenStore.

        with Client() as client:
            client.write("/example/name", "value")
            client.read("/example/name")            # b"value"

    `path` is a socket or a xenbus device, by default what `find_store()` says.  `timeout` is how many seconds an answer
    may take before TimeoutError (None: for ever); a request that ran out of time may still have been carried out.
    `max_events` bounds what each watch queues while nobody asks for its events; see `watch`.

    Raises StoreUnavailable when nobody can be reached.
    """

    def __init__(self, path: str | None = None, *, timeout: float | None = None, max_events: int = EVENT_LIMIT) -> None:
        self._timeout = timeout
        path = path or find_store()
        deadline = _deadline(timeout)
        while (opened := open_store(path)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise StoreUnavailable(f"cannot connect to {path}: too many clients are waiting")
            time.sleep(BUSY_DELAY)
        fd, payload_max = opened
        self._session = Session(path, payload_max, max_events)
        self._link = Link(fd, self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection: the daemon forgets its watches and aborts its transactions."""
        self._link.close()

    # Transactions

    def transaction(self) -> "Transaction":
        """Begins a transaction, for a `with` block that commits at its end and aborts on an exception.

            with client.transaction() as tx:
                tx.write("/a", tx.read("/b"))

        The commit raises EAGAIN when somebody else changed what the transaction has seen: nothing has been done then,
        and the block should run again.  `transact` does that.
        """
        return Transaction(self, self._perform(steps.start_transaction()))

    def transact(self, body: Callable[["Transaction"], T], *, attempts: int = ATTEMPTS) -> T:
        """Runs `body(tx)` in a transaction until the commit meets no conflict, and returns what `body` returned.

            client.transact(lambda tx: tx.write("/n", b"%d" % (int(tx.read("/n")) + 1)))

        `body` may run several times, so it should have no other effects.  Between tries the client sleeps for a random
        part of a bound that doubles from 1 ms to 100 ms; after `attempts` tries EAGAIN is raised.
        """
        for delay in delays(attempts):
            try:
                with self.transaction() as tx:
                    return body(tx)
            except StoreError as error:
                if error.name != "EAGAIN" or delay is None:
                    raise
            time.sleep(delay)
        raise ValueError("a transaction needs at least one attempt")

    # Watches

    def watch(self, *paths: Text, depth: int | None = None, timeout: float | None = None) -> "Watch":
        """Watches one or more paths and everything below them: an iterator of `WatchEvent`s.

            with client.watch("/local/domain/0/backend") as events:
                for event in events:
                    print(event.path)

        The watch is set when this returns.  Each path yields one event at once, whether or not it exists, then one
        for every change.  `depth` limits how many levels below a path count (0: only the path itself).  With `timeout`,
        iteration ends when that many seconds pass without an event.  (A guest's kernel forgets the depth of watches on
        `@releaseDomain` and the like; elsewhere the client sees to it itself.)

        Any number of watches can be open on one client.  Events that arrive while the client waits for something else
        are queued, up to the client's `max_events` for each watch; if even more come, all of them are replaced by one
        event with `overflow` for each path.  Closing the watch (or leaving its `with` block, or losing the last
        reference) removes it from the daemon.
        """
        subscription = self._session.subscribe()
        watch = Watch(self, subscription, timeout)
        try:
            for path in paths:
                self._perform(self._session.watch(subscription, path, depth))
        except BaseException:
            watch.close()
            raise
        return watch

    def unwatch(self, watch: "Watch") -> None:
        """The same as `watch.close()`."""
        watch.close()

    def reset_watches(self) -> None:
        """Removes all watches of this connection and aborts all its transactions; iteration over watches ends.

        On a guest's xenbus device this hits the watches of the guest's kernel too.
        """
        self._perform(self._session.reset_watches())

    # Domains, features, quotas.  Most of these are for the privileged domain; others get EACCES.

    def get_domain_path(self, domid: int) -> str:
        """The home of a domain, `/local/domain/N`, whether or not the domain exists."""
        return self._perform(steps.get_domain_path(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        """Whether the domain is connected to XenStore."""
        return self._perform(steps.is_domain_introduced(domid))

    def introduce(self, domid: int, gfn: int, evtchn: int) -> None:
        """Connects a domain by its ring page and event channel port."""
        self._perform(steps.introduce(domid, gfn, evtchn))

    def release(self, domid: int) -> None:
        """Disconnects a domain."""
        self._perform(steps.release(domid))

    def resume(self, domid: int) -> None:
        """Says that a domain that was shut down runs again, so that its next shutdown is reported."""
        self._perform(steps.resume(domid))

    def set_target(self, domid: int, target: int) -> None:
        """Gives `domid` the rights of `target` on nodes: it is the device model of that domain."""
        self._perform(steps.set_target(domid, target))

    def get_feature(self, domid: int | None = None) -> int:
        """The features (`protocol.ops.FEATURE_*`) of this connection, or of a domain."""
        return self._perform(steps.get_feature(domid))

    def set_feature(self, domid: int, value: int) -> None:
        """Sets the features that a domain, not yet introduced, will be offered."""
        self._perform(steps.set_feature(domid, value))

    def quota_names(self) -> list[str]:
        """The quotas that the daemon knows."""
        return self._perform(steps.quota_names())

    def get_quota(self, name: Text, domid: int | None = None) -> int:
        """A quota: the default for domains to come, or that of a domain.  0 is unlimited."""
        return self._perform(steps.get_quota(name, domid))

    def set_quota(self, name: Text, value: int, domid: int | None = None) -> None:
        """Sets a quota, for domains to come or for one domain."""
        self._perform(steps.set_quota(name, value, domid))

    def control(self, *words: Text) -> str:
        """Sends a command to the daemon, as `xenstore-control` does, and returns its text."""
        return self._perform(steps.control(words))

    # Waiting

    def _perform(self, operation: Steps[T], tx_id: int = 0) -> T:
        try:
            request = next(operation)
            while True:
                try:
                    reply = self._ask(request, tx_id)
                except BaseException as error:
                    request = operation.throw(error)
                else:
                    request = operation.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _ask(self, request: Request, tx_id: int) -> bytes:
        session = self._session
        req_id = session.send(request, tx_id)
        answered = False
        try:
            answered = self._wait(lambda: session.answered(req_id), self._timeout)
        finally:
            if not answered:
                session.abandon(req_id)
        if not answered:
            raise TimeoutError(f"no answer to {request.op.name} within {self._timeout} s")
        return session.take(req_id)

    def _post(self, request: Request, tx_id: int) -> None:
        self._session.post(request, tx_id)
        self._link.push()

    def _wait(self, done: Callable[[], object], timeout: float | None) -> bool:
        """Moves bytes until `done()`; False if that does not happen in time.  Raises ConnectionLost."""
        deadline = _deadline(timeout)
        remaining = timeout
        while True:
            self._link.push()
            if done():
                return True
            self._session.check()
            if self._link.wait(remaining):
                self._link.pull()
            if deadline is not None:
                if remaining == 0:
                    return bool(done())
                remaining = max(0.0, deadline - time.monotonic())


class Transaction(Nodes):
    """A transaction in a `with` block; see `Client.transaction`.  Other domains see its writes at the commit, all at once."""

    def __init__(self, client: Client, tx_id: int) -> None:
        self._client = client
        self._tx_id: int | None = tx_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        elif self._tx_id is not None:
            self.commit()

    def commit(self) -> None:
        """Makes everything visible, or raises (EAGAIN: conflict).  Either way the transaction is over."""
        tx_id = self._take_id()
        self._client._perform(steps.commit_transaction(), tx_id)

    def abort(self) -> None:
        """Forgets everything, without waiting for the daemon's answer.  Does nothing if the transaction is over."""
        if self._tx_id is not None:
            self._client._post(steps.end_transaction(False), self._take_id())

    def _take_id(self) -> int:
        tx_id, self._tx_id = self._tx_id, None
        return _open_transaction(tx_id)

    def _perform(self, operation: Steps[T]) -> T:
        return self._client._perform(operation, _open_transaction(self._tx_id))


class Watch:
    """The events of one `Client.watch` call: an iterator, and a context manager that closes it."""

    def __init__(self, client: Client, subscription: Subscription, timeout: float | None) -> None:
        self._client = client
        self._subscription = subscription
        self._timeout = timeout
        weakref.finalize(self, client._session.drop, subscription).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        event = self._next(self._timeout)
        if event is None:
            raise StopIteration
        return event

    def get(self, timeout: float | None = None) -> WatchEvent:
        """The next event.  Raises TimeoutError after `timeout` seconds without one, ValueError if the watch is closed."""
        event = self._next(timeout)
        if event is not None:
            return event
        if self._subscription.closed:
            raise ValueError("the watch is closed")
        raise TimeoutError(f"no event within {timeout} s")

    def close(self) -> None:
        """Removes the watch from the daemon (not waiting for its answer) and ends iteration.  May be called again."""
        self._subscription.events.clear()
        self._client._session.unsubscribe(self._subscription)
        self._client._link.push()

    def _next(self, timeout: float | None) -> WatchEvent | None:
        subscription = self._subscription
        self._client._wait(lambda: subscription.events or subscription.closed, timeout)
        return subscription.events.popleft() if subscription.events else None


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _open_transaction(tx_id: int | None) -> int:
    if tx_id is None:
        raise ValueError("the transaction is over")
    return tx_id
