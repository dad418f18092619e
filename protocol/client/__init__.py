"""Talking to XenStore: a blocking client, a trio client and a command line.

    from protocol.client import Client

    with Client() as client:                              # finds the daemon by itself
        client.write("/example/name", "value")
        print(client.read("/example/name"))               # b"value"

        def count(tx):                                    # runs again if somebody interferes
            tx.write("/example/count", str(int(tx.read("/example/count")) + 1))

        client.write("/example/count", "0")
        client.transact(count)

        with client.watch("/example", timeout=1) as events:
            for event in events:                          # ends after a quiet second
                print(event.path)

The same for trio:

    import trio
    from protocol.client import AsyncClient

    async def main():
        async with AsyncClient() as client:
            await client.write("/example/name", "value")
            print(await client.read("/example/name"))

            async def count(tx):
                await tx.write("/example/count", str(int(await tx.read("/example/count")) + 1))

            await client.transact(count)

            async with client.watch("/example") as events:
                async for event in events:                # for ever: a cancel scope ends it
                    print(event.path)
                    break

    trio.run(main)

From a shell: `python -m protocol.client --help`.

This is the one part of `protocol` that does I/O.  `steps` and `session` hold all it knows of the protocol, sans-IO; `link`
moves bytes; `blocking` and `trio_client` wait.  It does not know what runs at the other end: it serves with any xenstored,
through a socket or a guest's /dev/xen/xenbus.

Errors: `StoreError` (by name, or as the classes of `protocol.errors`) when the daemon refuses; `RequestTooLong`, a
StoreError named E2BIG, when a request exceeds one message; `ConnectionLost`, `StoreUnavailable` and `UnexpectedReply`,
ConnectionErrors all, when there is no usable answer.
"""

from typing import TYPE_CHECKING

from protocol.client.blocking import Client, Transaction, Watch
from protocol.client.failures import ConnectionLost, RequestTooLong, StoreUnavailable, UnexpectedReply
from protocol.client.locate import find_store
from protocol.client.session import WatchEvent
from protocol.errors import StoreError
from protocol.permissions import Permission

if TYPE_CHECKING:
    from protocol.client.trio_client import AsyncClient, AsyncTransaction, AsyncWatch

__all__ = [
    "AsyncClient",
    "AsyncTransaction",
    "AsyncWatch",
    "Client",
    "ConnectionLost",
    "Permission",
    "RequestTooLong",
    "StoreError",
    "StoreUnavailable",
    "Transaction",
    "UnexpectedReply",
    "Watch",
    "WatchEvent",
    "find_store",
]


def __getattr__(name: str) -> object:
    """Imports the trio client when it is asked for: blocking programs need not load trio."""
    if name in {"AsyncClient", "AsyncTransaction", "AsyncWatch"}:
        from protocol.client import trio_client  # noqa: PLC0415 - as said above

        return getattr(trio_client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
