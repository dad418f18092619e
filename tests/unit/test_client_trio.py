"""The trio client against a daemon that does what the test says."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.client import AsyncClient, AsyncTransaction, ConnectionLost, RequestTooLong, StoreUnavailable, WatchEvent
from protocol.errors import EAGAIN, ENOENT, StoreError
from protocol.ops import Op
from protocol.wire import Message
from tests.unit.test_client_fake import Answer, FakeDaemon, event, no, ok, token_of

Start = Callable[[Answer], FakeDaemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a fake daemon."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(FakeDaemon(tmp_path / "socket", answer))


def yes(message: Message) -> bytes:
    """Grants everything; transactions are numbered by their requests; READ gives the path."""
    if message.op == Op.TRANSACTION_START:
        return ok(message, b"%d\0" % message.req_id)
    if message.op == Op.WATCH:
        return ok(message) + event("/initial", token_of(message))
    return ok(message, message.payload[:-1]) if message.op == Op.READ else ok(message)


def ops(daemon: FakeDaemon) -> list[int]:
    return [message.op for message in daemon.received]


async def received(daemon: FakeDaemon, count: int) -> list[Message]:
    return await trio.to_thread.run_sync(daemon.wait_for, count)


# Connecting


async def test_nobody_there_is_store_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        async with AsyncClient(str(tmp_path / "socket")):
            pass


async def test_a_client_connects_on_entering_its_block_and_only_once(start: Start) -> None:
    daemon = start(yes)
    client = AsyncClient(daemon.path)
    with pytest.raises(ConnectionLost, match="not been opened"):
        await client.read("/a")
    async with client:
        assert await client.read("/a") == b"/a"
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await client.read("/a")
    with pytest.raises(RuntimeError):
        async with client:
            pass


async def test_errors_in_the_block_come_out_as_they_are(start: Start) -> None:
    daemon = start(lambda m: no(m, "ENOENT"))
    with pytest.raises(ENOENT):
        async with AsyncClient(daemon.path) as client:
            await client.read("/a")


# Requests


async def test_a_request_too_long_is_not_sent(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client:
        with pytest.raises(RequestTooLong):
            await client.write("/a", bytes(4094))
        await client.write("/a", bytes(4093))
    assert len(daemon.received) == 1


async def test_each_task_gets_the_reply_to_its_own_request(start: Start) -> None:
    held: list[Message] = []

    def backwards(message: Message) -> bytes | None:
        held.append(message)
        return b"".join(map(yes, reversed(held))) if len(held) == 50 else None

    daemon = start(backwards)
    seen = {}
    async with AsyncClient(daemon.path) as client:

        async def ask(path: str) -> None:
            seen[path] = await client.read(path)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, f"/{number}")
    assert seen == {f"/{number}": b"/%d" % number for number in range(50)}


async def test_when_the_reading_task_is_cancelled_another_one_reads(start: Start) -> None:
    release = trio.Event()
    held: list[Message] = []

    def hold(message: Message) -> None:
        held.append(message)

    daemon = start(hold)
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:
        seen = []

        async def ask(path: str) -> None:
            seen.append(await client.read(path))
            release.set()

        with trio.CancelScope() as first:
            nursery.start_soon(ask, "/a")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, "/b")
            await received(daemon, 2)
            nursery.start_soon(ask, "/c")
            await received(daemon, 3)
            first.cancel()
        with trio.move_on_after(0.01):
            await client.read("/cancelled")
        await received(daemon, 4)
        daemon.send(b"".join(map(yes, reversed(held))))
        await release.wait()
    assert sorted(seen) == [b"/a", b"/b", b"/c"]


async def test_a_reader_that_is_cancelled_hands_over(start: Start) -> None:
    daemon = start(lambda m: None)
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:
        reader = trio.CancelScope()
        seen = []

        async def first() -> None:
            with reader:
                await client.read("/first")

        async def second() -> None:
            seen.append(await client.read("/second"))

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        messages = await received(daemon, 2)
        reader.cancel()
        await trio.testing.wait_all_tasks_blocked()
        daemon.send(b"".join(map(yes, messages)))
    assert seen == [b"/second"]


async def test_much_can_be_sent_while_the_daemon_does_not_read(start: Start) -> None:
    daemon = start(yes)
    daemon.may_read.clear()
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(client.write, f"/{number}", bytes(4000))
        await trio.sleep(0.1)
        assert client._session.outbox
        daemon.may_read.set()
    assert len({message.payload for message in daemon.received}) == 300
    assert {len(message.payload) for message in daemon.received} <= {4003, 4004, 4005}


async def test_a_lost_connection_reaches_every_task(start: Start) -> None:
    daemon = start(lambda m: None)
    losses = []
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ConnectionLost, match="the daemon closed it"):
                await client.read("/a")
            losses.append(1)

        for _ in range(3):
            nursery.start_soon(ask)
        await received(daemon, 3)
        daemon.hang_up()
    assert len(losses) == 3


async def test_closing_wakes_every_task(start: Start) -> None:
    daemon = start(lambda m: None)
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ConnectionLost, match="closed by this client"):
                await client.read("/a")

        for _ in range(3):
            nursery.start_soon(ask)
        await received(daemon, 3)
        client.close()
        client.close()


@pytest.mark.parametrize("ask", [lambda c: c.read("/a"), lambda c: c.watch("/a").get()])
async def test_every_method_is_a_checkpoint(start: Start, ask: Callable[[AsyncClient], Awaitable[object]]) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client:
        with trio.testing.assert_checkpoints():
            await ask(client)


async def test_nothing_is_sent_by_a_task_that_is_cancelled_already(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.write("/a", "v")
        await client.mkdir("/b")
    assert ops(daemon) == [Op.MKDIR]


# Transactions


async def test_a_block_commits_at_its_end(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client, client.transaction() as tx:
        await tx.write("/a", "v")
    assert ops(daemon) == [Op.TRANSACTION_START, Op.WRITE, Op.TRANSACTION_END]
    assert [m.tx_id for m in daemon.received] == [0, 1, 1]
    assert daemon.received[-1].payload == b"T\0"


async def test_an_exception_in_the_block_aborts_and_is_passed_on(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client:
        with pytest.raises(KeyError):
            async with client.transaction():
                raise KeyError
        await client.mkdir("/the/connection/is/fine")
    assert daemon.received[1].payload == b"F\0"


async def test_a_block_that_is_cancelled_aborts(start: Start) -> None:
    daemon = start(lambda m: None if m.op == Op.READ else yes(m))
    async with AsyncClient(daemon.path) as client:
        with trio.move_on_after(0.05):
            async with client.transaction() as tx:
                await tx.read("/never/answered")
        messages = await received(daemon, 3)
        await client.mkdir("/the/connection/is/fine")
    assert messages[2].payload == b"F\0"


async def test_a_transaction_that_comes_into_being_after_the_cancellation_is_aborted(start: Start) -> None:
    daemon = start(lambda m: None if m.op == Op.TRANSACTION_START else yes(m))
    async with AsyncClient(daemon.path) as client:
        with trio.move_on_after(0.05):
            async with client.transaction():
                raise AssertionError("it never began")
        daemon.send(ok(daemon.received[0], b"77\0"))
        await client.mkdir("/a")
        messages = await received(daemon, 3)
    assert [(m.op, m.tx_id, m.payload) for m in messages[1:]] == [
        (Op.MKDIR, 0, b"/a\0"),
        (Op.TRANSACTION_END, 77, b"F\0"),
    ]


async def test_a_transaction_is_open_only_in_its_block(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client:
        tx = client.transaction()
        with pytest.raises(ValueError, match="not open"):
            await tx.read("/a")
        async with tx:
            await tx.read("/a")
            with pytest.raises(RuntimeError):
                await tx.__aenter__()
            await tx.commit()
        with pytest.raises(ValueError, match="not open"):
            await tx.commit()
        tx.abort()
    assert ops(daemon).count(Op.TRANSACTION_END) == 1


@pytest.mark.parametrize(("refused", "attempts", "succeeds"), [(3, 30, True), (3, 3, False)])
async def test_transact_tries_again_so_many_times(start: Start, refused: int, attempts: int, succeeds: bool) -> None:
    tries = 0

    def answer(message: Message) -> bytes:
        return no(message, "EAGAIN") if message.op == Op.TRANSACTION_END and tries <= refused else yes(message)

    async def body(tx: AsyncTransaction) -> int:
        nonlocal tries
        tries += 1
        await tx.read("/a")
        return tries

    daemon = start(answer)
    async with AsyncClient(daemon.path) as client:
        if succeeds:
            assert await client.transact(body, attempts=attempts) == refused + 1
        else:
            with pytest.raises(EAGAIN):
                await client.transact(body, attempts=attempts)
    assert tries == min(refused + 1, attempts)


# Watches


async def test_a_watch_is_set_on_entering_its_block_and_removed_on_leaving(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client:
        async with client.watch("/a") as watch:
            assert ops(daemon) == [Op.WATCH]
            daemon.send(event("/a/b", token_of(daemon.received[0])))
            assert (await watch.get()).path == "/initial"
            assert (await watch.get()).path == "/a/b"
        await client.mkdir("/b")
        with pytest.raises(ValueError, match="closed"):
            await watch.get()
    assert ops(daemon) == [Op.WATCH, Op.UNWATCH, Op.MKDIR]


async def test_a_bare_async_for_sets_the_watch_and_drops_it_later(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client:
        async for seen in client.watch("/a", depth=1):
            assert seen == WatchEvent("/initial", "/a")
            break
        await client.mkdir("/b")
        await client.mkdir("/b")
    assert ops(daemon) == [Op.WATCH, Op.UNWATCH, Op.MKDIR, Op.MKDIR]


async def test_several_tasks_watch_while_others_ask(start: Start) -> None:
    daemon = start(yes)
    seen: dict[str, list[str]] = {"/a": [], "/b": []}
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:

        async def follow(path: str) -> None:
            async with client.watch(path) as watch:
                async for each in watch:
                    seen[path].append(each.path)
                    if len(seen[path]) == 3:
                        break

        nursery.start_soon(follow, "/a")
        nursery.start_soon(follow, "/b")
        tokens = {m.payload[:2].decode(): token_of(m) for m in await received(daemon, 2)}
        assert await client.read("/x") == b"/x"
        for path in ("/b", "/a", "/a", "/b"):
            daemon.send(event(f"{path}/{len(seen)}", tokens[path]))
        assert await client.read("/y") == b"/y"
    assert seen == {"/a": ["/initial", "/a/2", "/a/2"], "/b": ["/initial", "/b/2", "/b/2"]}


async def test_closing_a_watch_ends_iteration_in_another_task(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:
        watch = client.watch("/a")

        async def follow() -> None:
            async for _ in watch:
                pass

        nursery.start_soon(follow)
        nursery.start_soon(client.read, "/b")
        await received(daemon, 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(client.read, "/keeps/somebody/reading")
        client.unwatch(watch)
    assert Op.UNWATCH in ops(daemon)


async def test_closing_a_watch_ends_iteration_in_the_reading_task(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:
        watch = client.watch("/a")

        async def follow() -> None:
            async for _ in watch:
                pass

        nursery.start_soon(follow)
        await received(daemon, 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        watch.close()
        with trio.fail_after(2):
            while nursery.child_tasks:
                await trio.sleep(0.01)


async def test_a_watch_that_is_cancelled_while_being_set_is_removed(start: Start) -> None:
    daemon = start(lambda m: None if m.op == Op.WATCH else yes(m))
    async with AsyncClient(daemon.path) as client:
        with trio.move_on_after(0.05):
            async with client.watch("/a"):
                raise AssertionError("it was never set")
        daemon.send(ok(daemon.received[0]))
        await client.mkdir("/b")
        messages = await received(daemon, 3)
    assert [m.op for m in messages] == [Op.WATCH, Op.MKDIR, Op.UNWATCH]


async def test_when_one_path_is_refused_the_others_are_unwatched(start: Start) -> None:
    daemon = start(lambda m: no(m, "EINVAL") if b"bad" in m.payload else yes(m))
    async with AsyncClient(daemon.path) as client:
        with pytest.raises(StoreError, match="EINVAL"):
            async with client.watch("/good", "/bad."):
                pass
        await client.mkdir("/b")
    assert ops(daemon) == [Op.WATCH, Op.WATCH, Op.UNWATCH, Op.MKDIR]


async def test_resetting_ends_all_iteration(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client, trio.open_nursery() as nursery:

        async def follow() -> None:
            async for _ in client.watch("/a"):
                pass

        nursery.start_soon(follow)
        await received(daemon, 1)
        await client.reset_watches()


async def test_a_lost_connection_ends_a_watch_after_the_events_that_came(start: Start) -> None:
    daemon = start(yes)
    async with AsyncClient(daemon.path) as client, client.watch("/a") as watch:
        daemon.hang_up()
        assert (await watch.get()).path == "/initial"
        with pytest.raises(ConnectionLost):
            await watch.get()
        with pytest.raises(ConnectionLost):
            client.watch("/b")
