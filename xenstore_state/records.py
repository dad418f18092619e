"""Records: what Logic publishes for each request that changes anything, and how State takes them.

A record is the msgpack of a `Record`.  State treats each as hostile: form and types first, then the effect is performed
with State's own rules on State's own store, and outcome and generation must be those that Logic found.  Anything else is
a `BadRecord`; it and all that follow are not applied.  Knows nothing of processes and descriptors.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack

from protocol.errors import StoreError
from protocol.ops import Op
from protocol.wire import PAYLOAD_MAX, messages
from recovery_box.box import REGION_SIZE
from recovery_box.items import M32, Connection
from recovery_box.journal import pack
from xenstore_state.effects import (
    CHANGES_TREE,
    CLOSE,
    COMMIT,
    EFFECTS,
    ENDS_DOMAIN,
    EXPIRE,
    ROLLBACK,
    WRITE,
    Diverged,
    Effect,
    in_transaction,
    names_of,
)
from xenstore_state.quotas import QuotaExceeded
from xenstore_state.store import Store

encode: Final[Callable[["Record | tuple[Any, ...]"], bytes]] = pack
"""A record (or a plain tuple of its fields) as it stands in the journal."""

ARGUMENT_MAX: Final = PAYLOAD_MAX + 32
"""Longest argument: a payload, made canonical."""
_SIZED: Final = frozenset({bytes, str, tuple})


class BadRecord(Exception):
    """A record that cannot be true."""


class Output(NamedTuple):
    """Bytes for one connection, part of a record: they go out only once the record is published."""

    connection: int
    position: int
    """Where in the connection's output stream they begin."""
    data: bytes
    pending: bool
    """They do not fit the region and wait as an item.  No bytes that wait: too many do, and the connection is hung up on."""
    deadline: int = 0
    """When events among those that wait are dropped, in milliseconds of the monotonic clock; 0: never."""


Placed = tuple[int, int, bytes, bool, int]
"""An `Output` as a plain tuple: one is made for every event."""


class Record(NamedTuple):
    """One record."""

    connection: int
    """Id of the connection that acted."""
    head: int
    """Its input is consumed up to this stream position."""
    kind: int
    arguments: tuple[Any, ...]
    outcome: str
    """"" or the name of the error with which the effect ended."""
    generation: int
    """Generation of the tree afterwards."""
    outputs: tuple[Placed, ...]


def decode(body: bytes) -> Record:
    """Reads a record back.  Raises `BadRecord` unless it has the form of one."""
    try:
        fields = msgpack.unpackb(body, use_list=False)
        connection, head, kind, arguments, outcome, generation, outputs = fields
        if not (
            type(connection) is type(head) is type(kind) is type(generation) is int
            and type(arguments) is type(outputs) is tuple
            and type(outcome) is str
            and 0 <= head <= M32
        ):
            raise BadRecord("a field has the wrong type")
        for to, position, data, pending, deadline in outputs:
            if not (
                type(to) is type(position) is type(deadline) is int
                and type(data) is bytes
                and type(pending) is bool
                and 0 <= position <= M32
            ):
                raise BadRecord("an output has the wrong type")
    except (ValueError, TypeError, msgpack.UnpackException) as e:
        raise BadRecord(f"not a record: {e!r}") from None
    return tuple.__new__(Record, fields)  # as its own makers do, by way of interpreted code


def wait(connection: Connection, output: Placed, cause: tuple[int, int]) -> None:
    """Output that a record says has to wait.  For a connection that quotas bind, each message waits for itself."""
    _, position, data, _, deadline = output
    connection.overflowed = connection.overflowed or not data
    if connection.subject.quotas is None:
        connection.pending.append(position, data, 0, cause)
        return
    for op, message in messages(data):
        connection.pending.append(position, message, deadline if op == Op.WATCH_EVENT else 0, cause)
        position = (position + len(message)) & M32


def count_refusal(store: Store, by: Connection, error: StoreError) -> int:
    """Counts a quota's refusal for the domain that met it; how many there were of this quota, 0 if it was something else."""
    domain = store.domains.known.get(by.domid)
    if not isinstance(error, QuotaExceeded) or domain is None:
        return 0
    domain.refused[error.quota] = domain.refused.get(error.quota, 0) + 1
    return domain.refused[error.quota]


class Applier:
    """Applies records to State's store."""

    def __init__(self, store: Store, made: Callable[[Connection], int]) -> None:
        """`made` tells how far a connection's output has got into its region: what is there is not pending any more."""
        self.store = store
        self._made = made
        self._waiting: dict[int, Connection] = {}
        """Connections that may have pending output, or have let too much of it pile up."""
        for connection in store.items.connections:
            if connection.pending.chunks or connection.overflowed:
                self._waiting[connection.id] = connection
        self.last: Record | None = None
        """The last record applied.  Its output may not have reached the regions: a new Logic sees to that."""

    @property
    def waiting(self) -> list[Connection]:
        """Connections that may have pending output, or have let too much of it pile up."""
        return [connection for connection in self._waiting.values() if not connection.closed]

    def trim(self) -> None:
        """Forgets pending output that has moved on; to be called every now and then."""
        for number, connection in list(self._waiting.items()):
            if not connection.closed:
                connection.pending.trim(self._made(connection))
            if connection.closed or not (connection.pending.chunks or connection.overflowed):
                del self._waiting[number]

    def apply(self, body: bytes, check: Callable[[Record], None] | None = None) -> Record:
        """Applies one record that passes the `check`.  Connections that it ended are in `Store.closed` then.

        Raises `BadRecord`.
        """
        record = decode(body)
        if check is not None:
            check(record)
        acting, head, kind, arguments, _, _, outputs = record  # at once: a field by its name costs a look-up
        by = self.store.connection(acting)
        if by is None:
            raise BadRecord(f"connection {acting} is not there")
        for argument in arguments:
            if type(argument) in _SIZED and len(argument) > ARGUMENT_MAX:
                raise BadRecord(f"effect {kind} with an argument that no client can have sent")
        if outputs:
            self._check_outputs(kind, outputs)
        effect = EFFECTS.get(kind)
        if effect is None or tuple(map(type, arguments)) != effect[0]:
            raise BadRecord(f"effect {kind} with {arguments!r:.200}")
        if kind == EXPIRE:
            self._trim(arguments[0])
        self._perform(record, by, effect)
        for output in outputs:
            if output[3]:
                to = output[0]
                connection = self.store.items.connections.get(to)
                if connection is not None:
                    wait(connection, output, (acting, head))
                    self._waiting[to] = connection
        if self.store.opened:
            self.store.opened.clear()
        self.last = record
        return record

    def remember(self, body: bytes) -> None:
        """A record that was applied before: its output may not have been made."""
        self.last = decode(body)

    def _trim(self, number: int) -> None:
        connection = self.store.items.connections.get(number)
        if connection is not None:
            connection.pending.trim(self._made(connection))

    def _perform(self, record: Record, by: Connection, effect: Effect) -> None:
        """Performs the effect; if outcome or generation are not the record's, the tree is as it was before.

        (What else the effect did, to watches or transactions, is the acting connection's own, which is closed then.)
        """
        _, _, kind, arguments, outcome, generation, _ = record
        tree = self.store.tree
        if kind == WRITE and not outcome and generation == tree.generation + 1 and self._changes_one_node(arguments):
            self._perform_as_recorded(record, by, effect)  # nothing to undo: it happens as recorded or not at all
            return
        isolated = in_transaction(kind, arguments)
        if outcome and not isolated:
            raise BadRecord(f"effect {kind} cannot fail")
        if kind in {COMMIT, ROLLBACK} or (kind in CHANGES_TREE and not isolated):
            before = tree.savepoint()
            try:
                self._perform_as_recorded(record, by, effect)
            except BadRecord:
                tree.rollback(before)
                raise
            finally:
                before.close()
        elif kind in ENDS_DOMAIN:
            # The hypervisor or the privileged domain has said so, and State has checked that: it happens in any case.
            self._perform_as_recorded(record, by, effect)
        elif generation != tree.generation:
            raise BadRecord(f"generation {generation}, {tree.generation} here")
        else:
            self._perform_as_recorded(record, by, effect)

    def _changes_one_node(self, arguments: tuple[Any, ...]) -> bool:
        """Whether it is a WRITE outside transactions that sets the value of a node or makes one node."""
        tx_id, path, _ = arguments
        try:
            return not tx_id and self.store.tree.find(names_of(path)[:-1]) is not None
        except StoreError as e:
            raise BadRecord(f"path {path!r:.200}: {e}") from None

    def _perform_as_recorded(self, record: Record, by: Connection, effect: Effect) -> None:
        _, _, kind, arguments, recorded, generation, _ = record
        outcome = ""
        try:
            effect[1](self.store, by, *arguments)
        except StoreError as refusal:
            outcome = refusal.name
            count_refusal(self.store, by, refusal)
        except Diverged:
            raise
        except Exception as e:  # whatever it is, it is no reason for State to die
            raise BadRecord(f"effect {kind}: {e!r}") from None
        if outcome != recorded:
            raise BadRecord(f"effect {kind} ends in {outcome or 'success'}, not {recorded or 'success'}")
        if generation != self.store.tree.generation:
            raise BadRecord(f"generation {generation}, {self.store.tree.generation} here")

    def _check_outputs(self, kind: int, outputs: tuple[Placed, ...]) -> None:
        if len(outputs) > 1 and len({output[0] for output in outputs}) < len(outputs):
            raise BadRecord("two outputs for one connection")
        if kind == CLOSE:
            raise BadRecord("a closing with output")
        for number, position, data, pending, _ in outputs:
            to = self.store.items.connections.get(number)
            if to is None:
                raise BadRecord(f"output for connection {number}, which is not there")
            if pending:
                self._check_pending(to, position, data)
            elif len(data) > REGION_SIZE:
                raise BadRecord(f"{len(data)} bytes of output, more than a region holds")

    def _check_pending(self, to: Connection, position: int, data: bytes) -> None:
        to.pending.trim(self._made(to))
        try:
            if to.subject.quotas is not None:
                list(messages(data))
        except ValueError as e:
            raise BadRecord(f"pending output for connection {to.id}: {e}") from None
        if to.pending.end not in {None, position} or not to.pending.has_room(len(data)):
            raise BadRecord(f"pending output for connection {to.id} does not fit what is pending")
