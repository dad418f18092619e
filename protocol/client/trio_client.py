"""The trio client: `AsyncClient`, its transactions and its watches.

The same as `protocol.client.blocking`, which has the full documentation, with `await`.  Any number of tasks may use one
client.  There is no background task: whichever task waits first reads for all, and hands over when it leaves.  So
nothing is read while nobody waits, and errors reach only the task whose request they answer.  Every method is a
checkpoint; a cancelled request may still be carried out, but a transaction or watch that it opens is closed again.
"""

import weakref
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import trio

from protocol.client import steps
from protocol.client.link import BUSY_DELAY, Link, open_store
from protocol.client.locate import find_store
from protocol.client.retry import ATTEMPTS, delays
from protocol.client.session import EVENT_LIMIT, Session, WatchEvent
from protocol.client.steps import PermissionLike, Request, Steps, Text
from protocol.errors import StoreError
from protocol.permissions import Permission

T = TypeVar("T")


class AsyncNodes:
    """What can be done to nodes, on an `AsyncClient` directly or inside an `AsyncTransaction`; see `Nodes`."""

    async def _perform(self, operation: Steps[T]) -> T:
        raise NotImplementedError

    async def read(self, path: Text) -> bytes:
        """As `Client.read`."""
        return await self._perform(steps.read(path))

    async def write(self, path: Text, value: Text) -> None:
        """As `Client.write`."""
        await self._perform(steps.write(path, value))

    async def mkdir(self, path: Text) -> None:
        """As `Client.mkdir`."""
        await self._perform(steps.mkdir(path))

    async def rm(self, path: Text) -> None:
        """As `Client.rm`."""
        await self._perform(steps.rm(path))

    async def exists(self, path: Text) -> bool:
        """As `Client.exists`."""
        return await self._perform(steps.exists(path))

    async def directory(self, path: Text) -> list[str]:
        """As `Client.directory`."""
        return await self._perform(steps.directory(path))

    async def get_perms(self, path: Text) -> list[Permission]:
        """As `Client.get_perms`."""
        return await self._perform(steps.get_perms(path))

    async def set_perms(self, path: Text, permissions: Iterable[PermissionLike]) -> None:
        """As `Client.set_perms`."""
        await self._perform(steps.set_perms(path, permissions))


class AsyncClient(AsyncNodes):
    """A connection to XenStore for trio tasks.

        async with AsyncClient() as client:
            await client.write("/example/name", "value")
            async with client.watch("/example") as events:
                async for event in events:
                    print(event.path, await client.directory("/example"))

    Arguments as `Client`, but for `timeout`: trio has `fail_after`.  The connection is made on entering the block, which
    raises StoreUnavailable when nobody can be reached.
    """

    def __init__(self, path: str | None = None, *, max_events: int = EVENT_LIMIT) -> None:
        self._path = path
        self._max_events = max_events
        self._link: Link | None = None
        self._session = Session("XenStore")
        self._session.lose("it has not been opened")
        self._reader: trio.CancelScope | None = None
        """Around the wait of the task that reads for all."""
        self._followers = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> Self:
        if self._link is not None:
            raise RuntimeError("a client connects only once")
        await trio.lowlevel.checkpoint()
        path = self._path or find_store()
        while (opened := open_store(path)) is None:
            await trio.sleep(BUSY_DELAY)
        fd, payload_max = opened
        self._session = Session(path, payload_max, self._max_events)
        self._link = Link(fd, self._session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close(self) -> None:
        """Ends the connection at once; tasks that wait for it get ConnectionLost."""
        if self._link is not None and not self._link.closed:
            trio.lowlevel.notify_closing(self._link.waitable)
            self._link.close()
            self._followers.unpark_all()

    # Transactions

    def transaction(self) -> "AsyncTransaction":
        """As `Client.transaction`, for `async with`; it begins on entering the block."""
        return AsyncTransaction(self)

    async def transact(self, body: Callable[["AsyncTransaction"], Awaitable[T]], *, attempts: int = ATTEMPTS) -> T:
        """As `Client.transact`, with an async function."""
        for delay in delays(attempts):
            try:
                async with self.transaction() as tx:
                    return await body(tx)
            except StoreError as error:
                if error.name != "EAGAIN" or delay is None:
                    raise
            await trio.sleep(delay)
        raise ValueError("a transaction needs at least one attempt")

    # Watches

    def watch(self, *paths: Text, depth: int | None = None) -> "AsyncWatch":
        """As `Client.watch`, for `async with` and `async for`.

        The watch is set on entering the `async with` block, or at the first event asked for.
        """
        self._session.check()
        return AsyncWatch(self, paths, depth)

    def unwatch(self, watch: "AsyncWatch") -> None:
        """The same as `watch.close()`."""
        watch.close()

    async def reset_watches(self) -> None:
        """As `Client.reset_watches`."""
        await self._perform(self._session.reset_watches())
        self._wake()

    # Domains, features, quotas

    async def get_domain_path(self, domid: int) -> str:
        """As `Client.get_domain_path`."""
        return await self._perform(steps.get_domain_path(domid))

    async def is_domain_introduced(self, domid: int) -> bool:
        """As `Client.is_domain_introduced`."""
        return await self._perform(steps.is_domain_introduced(domid))

    async def introduce(self, domid: int, gfn: int, evtchn: int) -> None:
        """As `Client.introduce`."""
        await self._perform(steps.introduce(domid, gfn, evtchn))

    async def release(self, domid: int) -> None:
        """As `Client.release`."""
        await self._perform(steps.release(domid))

    async def resume(self, domid: int) -> None:
        """As `Client.resume`."""
        await self._perform(steps.resume(domid))

    async def set_target(self, domid: int, target: int) -> None:
        """As `Client.set_target`."""
        await self._perform(steps.set_target(domid, target))

    async def get_feature(self, domid: int | None = None) -> int:
        """As `Client.get_feature`."""
        return await self._perform(steps.get_feature(domid))

    async def set_feature(self, domid: int, value: int) -> None:
        """As `Client.set_feature`."""
        await self._perform(steps.set_feature(domid, value))

    async def quota_names(self) -> list[str]:
        """As `Client.quota_names`."""
        return await self._perform(steps.quota_names())

    async def get_quota(self, name: Text, domid: int | None = None) -> int:
        """As `Client.get_quota`."""
        return await self._perform(steps.get_quota(name, domid))

    async def set_quota(self, name: Text, value: int, domid: int | None = None) -> None:
        """As `Client.set_quota`."""
        await self._perform(steps.set_quota(name, value, domid))

    async def control(self, *words: Text) -> str:
        """As `Client.control`."""
        return await self._perform(steps.control(words))

    # Waiting

    async def _perform(self, operation: Steps[T], tx_id: int = 0) -> T:
        try:
            request = next(operation)
            while True:
                try:
                    reply = await self._ask(request, tx_id)
                except BaseException as error:
                    request = operation.throw(error)
                else:
                    request = operation.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _ask(self, request: Request, tx_id: int) -> bytes:
        session = self._session
        await trio.lowlevel.checkpoint_if_cancelled()
        req_id = session.send(request, tx_id)
        answered = False
        try:
            await self._wait(lambda: session.answered(req_id))
            answered = True
        finally:
            if not answered:
                session.abandon(req_id)
        return session.take(req_id)

    def _post(self, request: Request, tx_id: int) -> None:
        self._session.post(request, tx_id)
        self._push()

    def _push(self) -> None:
        if self._link is not None:
            self._link.push()

    def _wake(self) -> None:
        """Makes every waiting task look again whether it is done."""
        if self._reader is not None:
            self._reader.cancel()
        self._followers.unpark_all()

    async def _wait(self, done: Callable[[], object]) -> None:
        """Moves bytes until `done()`: as the reader of all, or behind the task that is.  Raises ConnectionLost."""
        session, link = self._session, self._link
        while True:
            self._push()
            if done():
                return
            session.check()
            assert link is not None  # otherwise the session counts as lost
            if self._reader is not None:
                await self._followers.park()
                continue
            try:
                with trio.CancelScope() as self._reader:
                    await trio.lowlevel.wait_readable(link.waitable)
                    link.pull()
            except trio.ClosedResourceError:
                pass  # the session knows why
            finally:
                self._reader = None
                self._followers.unpark_all()


class AsyncTransaction(AsyncNodes):
    """A transaction in an `async with` block; see `Client.transaction`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._tx_id: int | None = None

    async def __aenter__(self) -> Self:
        if self._tx_id is not None:
            raise RuntimeError("the transaction has begun already")
        self._tx_id = await self._client._perform(steps.start_transaction())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        elif self._tx_id is not None:
            await self.commit()

    async def commit(self) -> None:
        """As `Transaction.commit`.  If cancelled, it may or may not have happened."""
        tx_id = self._open_id()
        self._tx_id = None
        await self._client._perform(steps.commit_transaction(), tx_id)

    def abort(self) -> None:
        """As `Transaction.abort`."""
        tx_id, self._tx_id = self._tx_id, None
        if tx_id is not None:
            self._client._post(steps.end_transaction(False), tx_id)

    def _open_id(self) -> int:
        if self._tx_id is None:
            raise ValueError("the transaction is not open")
        return self._tx_id

    async def _perform(self, operation: Steps[T]) -> T:
        return await self._client._perform(operation, self._open_id())


class AsyncWatch:
    """The events of one `AsyncClient.watch` call: an async iterator, and an async context manager that closes it."""

    def __init__(self, client: AsyncClient, paths: Iterable[Text], depth: int | None) -> None:
        self._client = client
        self._paths = tuple(paths)
        self._depth = depth
        self._subscription = client._session.subscribe()
        self._set = False
        weakref.finalize(self, client._session.drop, self._subscription).atexit = False

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        subscription = self._subscription
        await trio.lowlevel.checkpoint()
        if not self._set:
            await self._start()
        await self._client._wait(lambda: subscription.events or subscription.closed)
        if subscription.events:
            return subscription.events.popleft()
        raise StopAsyncIteration

    async def get(self) -> WatchEvent:
        """The next event.  Raises ValueError if the watch is closed."""
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise ValueError("the watch is closed") from None

    def close(self) -> None:
        """As `Watch.close`; tasks that iterate see the end."""
        self._set = True
        self._subscription.events.clear()
        self._client._session.unsubscribe(self._subscription)
        self._client._push()
        self._client._wake()

    async def _start(self) -> None:
        self._set = True
        try:
            for path in self._paths:
                await self._client._perform(self._client._session.watch(self._subscription, path, self._depth))
        except BaseException:
            self.close()
            raise
