"""The state of one client connection, without any I/O: `protocol.client.session`."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.client import ConnectionLost, RequestTooLong, WatchEvent
from protocol.client.session import Session, Subscription
from protocol.client.steps import Request, Text
from protocol.errors import ENOENT, StoreError
from protocol.ops import Op
from protocol.wire import HEADER, PAYLOAD_MAX, Framer, Message, watch_event

READ_A = Request(Op.READ, b"/a\0")


@pytest.fixture
def session() -> Session:
    return Session("the store", event_limit=3)


def sent(session: Session) -> list[Message]:
    """What the session wants to send, taken out of it; each piece is one whole message."""
    messages = []
    while session.outbox:
        [message] = Framer().feed(session.outbox.popleft())
        messages.append(message)
    return messages


def reply(session: Session, to: Message, payload: bytes = b"OK\0", op: Op | None = None) -> None:
    kind = to.op if op is None else op
    session.receive(Message(kind, to.req_id, to.tx_id, payload).encode())


def event(session: Session, path: bytes, token: bytes) -> None:
    encoded = watch_event(path, token)
    assert encoded is not None
    session.receive(encoded)


def watch(
    session: Session, path: Text, depth: int | None = None, subscription: Subscription | None = None
) -> tuple[Subscription, bytes]:
    """Sets a watch; its subscription and its token."""
    subscription = subscription or session.subscribe()
    operation = session.watch(subscription, path, depth)
    token = next(operation).payload.split(b"\0")[1]
    with pytest.raises(StopIteration):
        operation.send(b"OK\0")
    return subscription, token


# Requests and replies


def test_requests_are_numbered_from_one_and_carry_their_transaction(session: Session) -> None:
    session.send(READ_A)
    session.send(Request(Op.WRITE, b"/a\0v"), tx_id=9)
    assert sent(session) == [Message(2, 1, 0, b"/a\0"), Message(11, 2, 9, b"/a\0v")]


@given(st.permutations(range(6)))
def test_replies_find_their_requests_in_any_order(order: list[int]) -> None:
    session = Session("the store")
    ids = [session.send(READ_A) for _ in range(6)]
    requests = sent(session)
    for index in order:
        assert not session.answered(ids[index])
        reply(session, requests[index], b"%d" % index)
        assert session.answered(ids[index])
    assert [session.take(req_id) for req_id in ids] == [b"%d" % index for index in range(6)]


def test_a_refusal_is_raised_with_the_request_noted(session: Session) -> None:
    req_id = session.send(READ_A)
    reply(session, sent(session)[0], b"ENOENT\0", Op.ERROR)
    with pytest.raises(ENOENT) as caught:
        session.take(req_id)
    assert "READ (/a )" in caught.value.__notes__[0]


def test_request_numbers_wrap_around_past_zero_and_those_in_use(session: Session) -> None:
    first = session.send(READ_A)
    session._next_id = 2**32 - 1
    assert [first, session.send(READ_A), session.send(READ_A)] == [1, 2**32 - 1, 2]


@pytest.mark.parametrize("limit", [PAYLOAD_MAX, 4080])
def test_a_request_that_exceeds_the_transports_limit_is_not_sent(limit: int) -> None:
    session = Session("the store", payload_max=limit)
    session.send(Request(Op.WRITE, bytes(limit)))
    sent(session)
    with pytest.raises(RequestTooLong, match=f"{limit + 1} bytes of payload, {limit} are allowed") as caught:
        session.send(Request(Op.WRITE, bytes(limit + 1)))
    assert caught.value.name == "E2BIG"
    assert sent(session) == []


# Requests that nobody waits for any more


def test_the_late_reply_to_an_abandoned_request_is_dropped(session: Session) -> None:
    session.abandon(session.send(READ_A))
    waiting = session.send(READ_A)
    first, second = sent(session)
    reply(session, first, b"late")
    reply(session, second, b"in time")
    assert session.take(waiting) == b"in time"
    assert not session.lost


@pytest.mark.parametrize("late", [True, False])
def test_an_abandoned_transaction_is_aborted_when_it_turns_out_to_exist(session: Session, late: bool) -> None:
    req_id = session.send(Request(Op.TRANSACTION_START, b"\0"))
    [request] = sent(session)
    if late:
        session.abandon(req_id)
        reply(session, request, b"12\0")
    else:
        reply(session, request, b"12\0")
        session.abandon(req_id)
    [abort] = sent(session)
    assert abort == Message(Op.TRANSACTION_END, abort.req_id, 12, b"F\0")
    reply(session, abort)
    assert not session.lost


def test_an_abandoned_watch_is_removed_when_it_turns_out_to_exist(session: Session) -> None:
    session.abandon(session.send(Request(Op.WATCH, b"/a\0token\x003\0")))
    reply(session, sent(session)[0])
    [unwatch] = sent(session)
    assert (unwatch.op, unwatch.payload) == (Op.UNWATCH, b"/a\0token\0")


@pytest.mark.parametrize("request_", [READ_A, Request(Op.TRANSACTION_START, b"\0"), Request(Op.WATCH, b"/a\0t\0")])
def test_an_abandoned_request_that_was_refused_needs_no_undoing(session: Session, request_: Request) -> None:
    session.abandon(session.send(request_))
    reply(session, sent(session)[0], b"ENOSPC\0", Op.ERROR)
    assert sent(session) == []


def test_whether_a_posted_request_is_refused_does_not_matter(session: Session) -> None:
    session.post(Request(Op.TRANSACTION_END, b"F\0"), 5)
    reply(session, sent(session)[0], b"ENOENT\0", Op.ERROR)
    assert not session.lost


# Loss of the connection


def test_what_has_arrived_can_be_taken_after_the_loss(session: Session) -> None:
    answered, open_ = session.send(READ_A), session.send(READ_A)
    subscription, token = watch(session, "/w")
    reply(session, Message(Op.READ, answered, 0, b""), b"value")
    event(session, b"/w", token)
    session.lose("the daemon closed it")
    assert session.take(answered) == b"value"
    assert [e.path for e in subscription.events] == ["/w"]
    with pytest.raises(ConnectionLost, match="connection to the store lost: the daemon closed it"):
        session.take(open_)


def test_after_the_loss_nothing_is_sent(session: Session) -> None:
    subscription, _ = watch(session, "/w")
    session.send(READ_A)
    session.lose("the daemon closed it")
    with pytest.raises(ConnectionLost):
        session.send(READ_A)
    session.post(READ_A)
    session.unsubscribe(subscription)
    assert sent(session) == []


def test_the_first_reason_of_a_loss_counts(session: Session) -> None:
    session.lose("first")
    session.lose("second")
    with pytest.raises(ConnectionLost, match="first"):
        session.check()


BREACHES: dict[str, Callable[[Message], bytes]] = {
    "announces 5000 bytes": lambda request: HEADER.pack(Op.READ, request.req_id, 0, 5000),
    "a reply to no request": lambda request: Message(Op.READ, request.req_id + 1, 0, b"v").encode(),
    "READ was answered with WRITE": lambda request: Message(Op.WRITE, request.req_id, 0, b"OK\0").encode(),
    "READ was answered with .*UNKNOWN": lambda request: Message(77, request.req_id, 0, b"").encode(),
    "reply to no request": lambda request: 2 * Message(Op.READ, request.req_id, 0, b"v").encode(),
}


@pytest.mark.parametrize("reason", BREACHES)
def test_a_daemon_that_breaks_the_protocol_loses_the_connection(session: Session, reason: str) -> None:
    session.send(READ_A)
    [request] = sent(session)
    session.receive(BREACHES[reason](request))
    with pytest.raises(ConnectionLost, match=reason):
        session.check()


@given(st.binary(max_size=200))
def test_whatever_a_daemon_sends_is_taken_or_loses_the_connection(data: bytes) -> None:
    session = Session("the store")
    watch(session, "/w")
    session.send(READ_A)
    session.receive(data)


# Watches and events


def test_events_go_to_the_subscription_of_their_token(session: Session) -> None:
    a, token_a = watch(session, "/a")
    b, token_b = watch(session, "/b")
    assert token_a != token_b
    event(session, b"/b/x", token_b)
    event(session, b"/a", token_a)
    assert list(a.events) == [WatchEvent("/a", "/a")]
    assert list(b.events) == [WatchEvent("/b/x", "/b")]


def test_one_subscription_can_have_several_paths(session: Session) -> None:
    both, token_a = watch(session, "/a")
    _, token_b = watch(session, "data", subscription=both)
    event(session, b"data/x", token_b)
    event(session, b"/a/y", token_a)
    assert list(both.events) == [WatchEvent("data/x", "data"), WatchEvent("/a/y", "/a")]


def test_events_before_the_reply_to_the_watch_count(session: Session) -> None:
    subscription = session.subscribe()
    operation = session.watch(subscription, "/a", None)
    event(session, b"/a", next(operation).payload.split(b"\0")[1])
    assert len(subscription.events) == 1


def test_events_of_no_watch_are_dropped(session: Session) -> None:
    event(session, b"/a", b"no such token")
    session.receive(Message(Op.WATCH_EVENT, 0, 0, b"malformed").encode())
    assert not session.lost


def test_events_may_carry_any_request_number(session: Session) -> None:
    subscription, token = watch(session, "/a")
    session.receive(Message(Op.WATCH_EVENT, 12345, 0, b"/a\0" + token + b"\0").encode())
    assert len(subscription.events) == 1


def test_a_refused_watch_leaves_nothing_behind(session: Session) -> None:
    subscription = session.subscribe()
    operation = session.watch(subscription, "/a", None)
    token = next(operation).payload.split(b"\0")[1]
    with pytest.raises(StoreError, match="ENOSPC"):
        operation.throw(StoreError("ENOSPC"))
    event(session, b"/a", token)
    assert not subscription.events
    session.unsubscribe(subscription)
    assert sent(session) == []


def test_closing_removes_every_watch_of_the_subscription_once(session: Session) -> None:
    both, token_a = watch(session, "/a")
    _, token_b = watch(session, "/b", subscription=both)
    session.unsubscribe(both)
    session.unsubscribe(both)
    assert both.closed
    assert [(m.op, m.payload) for m in sent(session)] == [
        (Op.UNWATCH, b"/a\0" + token_a + b"\0"),
        (Op.UNWATCH, b"/b\0" + token_b + b"\0"),
    ]
    event(session, b"/a", token_a)
    assert not both.events


@pytest.mark.parametrize("next_contact", ["request", "reply"])
def test_a_dropped_subscription_is_closed_at_the_next_contact(session: Session, next_contact: str) -> None:
    subscription, token = watch(session, "/a")
    session.drop(subscription)
    assert sent(session) == []
    if next_contact == "request":
        session.send(READ_A)
    else:
        event(session, b"/a", token)
    assert sent(session)[0].op == Op.UNWATCH
    assert not subscription.events


def test_resetting_closes_all_subscriptions(session: Session) -> None:
    a, _ = watch(session, "/a")
    b, _ = watch(session, "/b")
    operation = session.reset_watches()
    assert next(operation).op == Op.RESET_WATCHES
    assert not a.closed
    with pytest.raises(StopIteration):
        operation.send(b"OK\0")
    assert a.closed
    assert b.closed
    session.unsubscribe(a)
    assert sent(session) == []


def test_a_full_queue_is_replaced_by_one_event_for_each_path_that_says_so(session: Session) -> None:
    both, token_a = watch(session, "/a")
    watch(session, "/b", subscription=both)
    for number in range(3):
        event(session, b"/a/%d" % number, token_a)
    assert [e.path for e in both.events] == ["/a/0", "/a/1", "/a/2"]
    event(session, b"/a/3", token_a)
    assert list(both.events) == [WatchEvent("/a", "/a", overflow=True), WatchEvent("/b", "/b", overflow=True)]
    event(session, b"/a/4", token_a)
    assert both.events[-1] == WatchEvent("/a/4", "/a")


@given(st.lists(st.integers(0, 2)), st.integers(1, 5))
def test_a_queue_never_exceeds_its_limit(numbers: list[int], limit: int) -> None:
    session = Session("the store", event_limit=limit)
    subscription, token = watch(session, "/a")
    for number in numbers:
        event(session, b"/a/%d" % number, token)
        assert len(subscription.events) <= limit


# Depth


def test_depth_is_sent_as_the_third_string(session: Session) -> None:
    request = next(session.watch(session.subscribe(), "/a", 2))
    assert request.payload.split(b"\0")[2:] == [b"2", b""]
    request = next(session.watch(session.subscribe(), "/a", None))
    assert request.payload.count(b"\0") == 2


@pytest.mark.parametrize(
    ("watched", "depth", "path", "passes"),
    [
        ("/a", 0, b"/a", True),
        ("/a", 0, b"/a/b", False),
        ("/a", 1, b"/a/b", True),
        ("/a", 1, b"/a/b/c", False),
        ("/a", 2, b"/a/b/c", True),
        ("/", 0, b"/", True),
        ("/", 0, b"/a", False),
        ("/", 1, b"/a", True),
        ("/", 1, b"/a/b", False),
        ("data", 0, b"data/x", False),
        ("data", 1, b"data/x", True),
        ("/a", None, b"/a/b/c/d", True),
        ("@releaseDomain", 1, b"@releaseDomain/7", True),
    ],
)
def test_events_that_lie_too_deep_are_left_out_whatever_the_daemon_sends(
    session: Session, watched: str, depth: int | None, path: bytes, passes: bool
) -> None:
    subscription, token = watch(session, watched, depth)
    event(session, path, token)
    assert bool(subscription.events) == passes


def test_a_daemon_that_knows_no_depth_is_asked_without(session: Session) -> None:
    subscription = session.subscribe()
    operation = session.watch(subscription, "/a", 1)
    first = next(operation)
    second = operation.throw(StoreError("EINVAL"))
    assert first.payload == second.payload + b"1\0"
    with pytest.raises(StopIteration):
        operation.send(b"OK\0")
    token = second.payload.split(b"\0")[1]
    event(session, b"/a/b", token)
    event(session, b"/a/b/c", token)
    assert [e.path for e in subscription.events] == ["/a/b"]


@pytest.mark.parametrize(("path", "depth"), [("@releaseDomain", 1), ("/a", -1)])
def test_depth_cannot_be_imitated_for_special_nodes_nor_below_zero(session: Session, path: str, depth: int) -> None:
    operation = session.watch(session.subscribe(), path, depth)
    next(operation)
    with pytest.raises(StoreError, match="EINVAL"):
        operation.throw(StoreError("EINVAL"))
