"""What can go wrong with a connection, as opposed to what a daemon answers.

A daemon's refusal is a `protocol.errors.StoreError`; the exceptions here mean that there was no (usable) answer.
Only `RequestTooLong` is a `StoreError` too: it stands for the E2BIG that any transport would answer.
"""

from protocol.errors import StoreError


class StoreUnavailable(ConnectionError):
    """No XenStore was found, or nobody answers where it should be."""


class ConnectionLost(ConnectionError):
    """The connection is gone.  Whether a request that was under way has been carried out is unknown."""


class UnexpectedReply(ConnectionError):
    """The daemon answered with something that the protocol does not allow; the connection can still be used."""


class RequestTooLong(StoreError):
    """E2BIG: the request does not fit into one message.  It has not been sent."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__("E2BIG")
        self.args = (f"E2BIG: the request needs {length} bytes of payload, {limit} are allowed",)
