"""The journal: what goes in comes out, in order, whole, or not at all; nothing that the producer did not write comes out.

Most tests run on a ring of a few hundred bytes, so that every corner of it is met; one runs on the real size.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from zlib import crc32

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery_box import journal
from recovery_box.box import JOURNAL_SIZE, PAGE, W_HEAD, W_TAIL, Box
from recovery_box.journal import RECORD_MAX, SEGMENT_MAX, Consumer, JournalCorrupt, Producer, RecordTooLarge
from tests.model.support import examples

SMALL = 512
SMALL_SEGMENT = SMALL // 4
ENTRY = 16

SIZES = st.one_of(
    st.integers(0, SMALL_SEGMENT + 3), st.sampled_from([0, 8, SMALL_SEGMENT]), st.integers(SMALL_SEGMENT, 3 * SMALL)
)


class RingFull(Exception):
    """The producer would have to wait."""


class Reader:
    """A consumer that takes one record at a time."""

    def __init__(self, box: Box) -> None:
        self.consumer = Consumer(box)
        self._records: Iterator[bytes] | None = None

    def take(self) -> bytes | None:
        """The next record; None if there is none (yet).  The room of the one before is given back."""
        if self._records is None:
            self._records = self.consumer.records()
        body = next(self._records, None)
        if body is None:
            self._records = None
        return body


def refuse() -> None:
    """An `on_full` for those who must never wait."""
    raise RingFull


def body(number: int, size: int) -> bytes:
    """A body whose bytes tell where they belong."""
    return bytes((number * 31 + i) & 0xFF for i in range(size))


@pytest.fixture(scope="module")
def shared_box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """One file for the whole module; `fresh` empties it."""
    return Box(str(tmp_path_factory.mktemp("journal") / "box"), max_connections=1)


def fresh(box: Box) -> Box:
    """The same box with an empty journal, full of old rubbish."""
    box.words[W_HEAD] = box.words[W_TAIL] = 0
    box.memory[PAGE : PAGE + 2 * SMALL] = b"\xa5" * (2 * SMALL)
    return box


@pytest.fixture
def box(shared_box: Box) -> Box:
    """An empty journal of the real size."""
    return fresh(shared_box)


def small() -> "mock._patch_dict":
    """Makes the ring small while it lasts."""
    sizes = {"JOURNAL_SIZE": SMALL, "_MASK": SMALL - 1, "SEGMENT_MAX": SMALL_SEGMENT, "RECORD_MAX": 4 * SMALL}
    return mock.patch.dict(vars(journal), sizes)


# ---- what goes in comes out


@examples(150)
@given(st.lists(SIZES, max_size=30), st.data())
def test_records_of_any_size_come_out_the_same_and_in_order(
    shared_box: Box, sizes: list[int], data: st.DataObject
) -> None:
    with small():
        box = fresh(shared_box)
        reader = Reader(box)
        received: list[bytes] = []

        def take() -> None:
            got = reader.take()
            if got is not None:
                received.append(got)

        producer = Producer(box, 0, take)
        for number, size in enumerate(sizes):
            producer.append(body(number, size))
            assert producer.backlog <= SMALL
            for _ in range(data.draw(st.integers(0, 3), label="taken")):
                take()
        while (got := reader.take()) is not None:
            received.append(got)
        assert received == [body(number, size) for number, size in enumerate(sizes)]
        assert reader.consumer.empty
        assert producer.backlog == 0


@examples(60)
@given(st.lists(st.lists(SIZES, max_size=4), max_size=8))
def test_a_new_producer_continues_after_an_old_one(shared_box: Box, lives: list[list[int]]) -> None:
    with small():
        box = fresh(shared_box)
        consumer = Consumer(box)
        received: list[bytes] = []
        sent: list[bytes] = []
        for sizes in lives:
            producer = Producer(box, consumer.sequence, lambda: received.extend(consumer.records()))
            for size in sizes:
                sent.append(body(len(sent), size))
                producer.append(sent[-1])
            received.extend(consumer.records())
        assert received == sent


def test_on_the_real_ring_large_records_wrap_around_and_come_out(box: Box) -> None:
    consumer = Consumer(box)
    received: list[bytes] = []
    producer = Producer(box, 0, lambda: received.extend(consumer.records()))
    sent = [body(n, 251) * 4178 for n in range(5)] + [bytes(SEGMENT_MAX), bytes(SEGMENT_MAX + 1), b"", b"x" * 2_500_001]
    assert len(sent[0]) > SEGMENT_MAX
    for one in sent:
        producer.append(one)
    received.extend(consumer.records())
    assert received == sent
    assert box.words[W_HEAD] > JOURNAL_SIZE


def test_a_body_beyond_the_largest_record_is_refused_and_nothing_is_published(box: Box) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return RECORD_MAX + 1

    with pytest.raises(RecordTooLarge):
        Producer(box, 0, refuse).append(Huge())
    assert Consumer(box).empty


# ---- a full ring


def test_a_ring_may_be_filled_to_the_last_byte(shared_box: Box) -> None:
    with small():
        box = fresh(shared_box)
        producer, consumer = Producer(box, 0, refuse), Consumer(box)
        bodies = [body(n, SMALL // 8 - ENTRY) for n in range(8)]
        for one in bodies:
            producer.append(one)
        assert producer.backlog == SMALL
        assert list(consumer.records()) == bodies
        for one in bodies:  # the same places again
            producer.append(one)
        assert list(consumer.records()) == bodies


@examples(60)
@given(st.lists(st.integers(0, SMALL_SEGMENT), min_size=1, max_size=40))
def test_a_full_ring_makes_the_producer_wait_and_overwrites_nothing(shared_box: Box, sizes: list[int]) -> None:
    with small():
        box = fresh(shared_box)
        producer = Producer(box, 0, refuse)
        published: list[bytes] = []
        waited = False
        for number, size in enumerate(sizes):
            head = box.words[W_HEAD]
            try:
                producer.append(body(number, size))
            except RingFull:
                waited = True
                # Only a filler may have been published, and what the ring holds is too much for the record.
                assert box.words[W_HEAD] + ENTRY + size > SMALL - (SMALL_SEGMENT + ENTRY) or head == 0
                break
            published.append(body(number, size))
        consumer = Consumer(box)
        assert list(consumer.records()) == published
        assert waited or len(published) == len(sizes)


def test_the_producer_waits_until_there_is_room_and_not_longer(shared_box: Box) -> None:
    with small():
        box = fresh(shared_box)
        reader = Reader(box)
        taken: list[bytes | None] = []
        producer = Producer(box, 0, lambda: taken.append(reader.take()))
        bodies = [body(n, SMALL_SEGMENT - ENTRY) for n in range(6)]
        for one in bodies[:4]:
            producer.append(one)
        assert taken == []
        producer.append(bodies[4])
        assert taken == bodies[:2]  # the second time gave the first one's room back
        producer.append(bodies[5])
        assert taken == bodies[:3]


def test_a_record_larger_than_the_ring_passes_through_it_while_the_producer_waits(shared_box: Box) -> None:
    with small():
        box = fresh(shared_box)
        consumer = Consumer(box)
        received: list[bytes] = []
        calls = 0

        def on_full() -> None:
            nonlocal calls
            calls += 1
            received.extend(consumer.records())

        one = body(1, 3 * SMALL)
        Producer(box, 0, on_full).append(one)
        assert calls
        assert received == []
        assert list(consumer.records()) == [one]


# ---- segments


def dies_within(box: Box, sequence: int, size: int) -> None:
    """A producer that publishes some segments of a record and never the last one."""
    with pytest.raises(RingFull):
        Producer(box, sequence, refuse).append(body(9, size))


def test_segments_count_only_with_their_last_one(shared_box: Box) -> None:
    with small():
        box = fresh(shared_box)
        dies_within(box, 0, 2 * SMALL)
        assert not Consumer(box).empty
        assert list(Consumer(box).records()) == []


def test_segments_of_a_dead_producer_do_not_get_into_its_successors_records(shared_box: Box) -> None:
    with small():
        box = fresh(shared_box)
        consumer = Consumer(box)
        dies_within(box, 0, 2 * SMALL)
        assert list(consumer.records()) == []
        consumer.drop_staged()
        next_one = body(1, SMALL_SEGMENT + 1)
        producer = Producer(box, consumer.sequence, refuse)
        producer.append(next_one)
        producer.append(b"and one more")
        assert list(consumer.records()) == [next_one, b"and one more"]


def test_a_whole_record_between_segments_is_refused(shared_box: Box) -> None:
    with small():
        box = fresh(shared_box)
        consumer = Consumer(box)
        dies_within(box, 0, 2 * SMALL)
        assert list(consumer.records()) == []
        # Nobody said `drop_staged`: the producer is the same, and no honest one does this.
        Producer(box, consumer.sequence, refuse).append(b"whole")
        with pytest.raises(JournalCorrupt):
            list(consumer.records())


# ---- the consumer believes nothing


def forge(box: Box, sequence: int, kind: int, content: bytes) -> None:
    """Publishes an entry of any kind, well made."""
    head = box.words[W_HEAD]
    check = crc32(content, (sequence ^ (kind | len(content))) & 0xFFFFFFFF)
    entry = struct.pack("=IIQ", kind | len(content), check, sequence) + content
    entry += bytes(-len(entry) % 8)
    box.memory[PAGE + head : PAGE + head + len(entry)] = entry
    box.words[W_HEAD] = head + len(entry)


def publish(box: Box, bodies: list[bytes], offset: int) -> tuple[Consumer, list[int]]:
    """A consumer that has read up to `offset`, and where each of the published bodies' entries begin."""
    consumer = Consumer(box)
    while consumer.sequence * 24 < offset:
        Producer(box, consumer.sequence, refuse).append(b"x" * 8)
        list(consumer.records())
    producer = Producer(box, consumer.sequence, refuse)
    ends = []
    for one in bodies:
        producer.append(one)
        ends.append(box.words[W_HEAD])
    starts = [end - (ENTRY + len(one) + 7) // 8 * 8 for end, one in zip(ends, bodies, strict=True)]
    return consumer, starts


def read_until_refused(consumer: Consumer) -> tuple[list[bytes], bool]:
    """What a consumer delivers, and whether it refuses what follows."""
    delivered = []
    try:
        for one in consumer.records():
            delivered.append(one)
    except JournalCorrupt:
        return delivered, True
    return delivered, False


BODIES = st.lists(st.integers(0, 40), min_size=1, max_size=5).map(
    lambda sizes: [body(n + 1, size) for n, size in enumerate(sizes)]
)


@examples(300)
@given(BODIES, st.integers(0, SMALL - 1), st.data())
def test_a_flipped_bit_stops_everything_from_its_record_on(
    shared_box: Box, bodies: list[bytes], offset: int, data: st.DataObject
) -> None:
    with small():
        box = fresh(shared_box)
        consumer, starts = publish(box, bodies, offset)
        hit = data.draw(st.integers(0, len(bodies) - 1), label="record")
        bit = data.draw(st.integers(0, 8 * (ENTRY + len(bodies[hit])) - 1), label="bit")
        at = PAGE + (starts[hit] + bit // 8) % SMALL
        box.memory[at] ^= 1 << bit % 8
        delivered, refused = read_until_refused(consumer)
        assert refused
        assert delivered == bodies[:hit]


def test_a_record_that_turns_into_a_filler_is_not_skipped(shared_box: Box) -> None:
    """One flipped bit makes it one; that the head happens to lie at the end of the ring must not hide it."""
    with small():
        box = fresh(shared_box)
        bodies = [body(n, SMALL // 4 - ENTRY) for n in range(4)]
        consumer, starts = publish(box, bodies, 0)
        assert box.words[W_HEAD] == SMALL
        box.memory[PAGE + starts[3] + 3] ^= 0x10
        assert read_until_refused(consumer) == (bodies[:3], True)


def test_a_filler_cannot_lead_beyond_the_head(shared_box: Box) -> None:
    with small():
        box = fresh(shared_box)
        consumer, starts = publish(box, [b"one", b"two"], 0)
        box.memory[PAGE + starts[1] : PAGE + starts[1] + ENTRY] = struct.pack("=IIQ", 0x10000000, 0, 0)
        assert read_until_refused(consumer) == ([b"one"], True)


@examples(150)
@given(BODIES, st.integers(0, SMALL - 1), st.integers(0, 2**64 - 1) | st.integers(0, 2 * SMALL))
def test_a_head_that_is_no_end_of_a_record_is_refused(
    shared_box: Box, bodies: list[bytes], offset: int, head: int
) -> None:
    with small():
        box = fresh(shared_box)
        consumer, starts = publish(box, bodies, offset)
        ends = [*starts[1:], box.words[W_HEAD]]
        box.words[W_HEAD] = head
        delivered, refused = read_until_refused(consumer)
        assert delivered == bodies[: len(delivered)]
        if not refused:  # then it was the end of a record (or filler): what lies behind is not published yet
            assert all(end <= head for end in ends[: len(delivered)])
            assert not any(end <= head for end in ends[len(delivered) :])


@pytest.mark.parametrize("sequence", [0, 2, 3, 2**63])
def test_a_wrong_sequence_number_is_refused(box: Box, sequence: int) -> None:
    consumer = Consumer(box)
    Producer(box, 0, refuse).append(b"first")
    Producer(box, sequence, refuse).append(b"second")
    assert read_until_refused(consumer) == ([b"first"], True)


def test_a_record_read_once_cannot_be_published_again(box: Box) -> None:
    consumer = Consumer(box)
    Producer(box, 0, refuse).append(b"once")
    entry = box.memory[PAGE : PAGE + box.words[W_HEAD]]
    assert list(consumer.records()) == [b"once"]
    at = PAGE + box.words[W_HEAD]
    box.memory[at : at + len(entry)] = entry
    box.words[W_HEAD] += len(entry)
    assert read_until_refused(consumer) == ([], True)


def test_the_consumer_does_not_believe_the_tail_either(box: Box) -> None:
    consumer = Consumer(box)
    producer = Producer(box, 0, refuse)
    producer.append(b"one")
    list(consumer.records())
    producer.append(b"two")
    box.words[W_TAIL] = 0
    assert list(consumer.records()) == [b"two"]


@pytest.mark.parametrize("kind", [0x40000000, 0x80000000, 0xF0000000])
def test_an_entry_of_no_known_kind_is_refused(box: Box, kind: int) -> None:
    consumer = Consumer(box)
    forge(box, 1, 0, b"known")
    forge(box, 2, kind, b"unknown")
    assert read_until_refused(consumer) == ([b"known"], True)


def test_a_producer_cannot_make_the_consumer_stage_without_bound(box: Box) -> None:
    consumer = Consumer(box)
    for sequence in range(1, 2_000):
        forge(box, sequence, 0x20000000, b"")
    assert read_until_refused(consumer) == ([], True)


# ---- afterwards


@examples(100)
@given(BODIES, st.integers(0, SMALL - 1), st.data())
def test_after_a_refusal_discard_gives_up_the_rest_and_a_new_producer_continues(
    shared_box: Box, bodies: list[bytes], offset: int, data: st.DataObject
) -> None:
    with small():
        box = fresh(shared_box)
        consumer, starts = publish(box, bodies, offset)
        hit = data.draw(st.integers(0, len(bodies) - 1), label="record")
        box.memory[PAGE + (starts[hit] + 8) % SMALL] ^= 1
        delivered, refused = read_until_refused(consumer)
        assert refused
        given_up, all_of_it = consumer.discard()
        assert given_up == bodies[hit : hit + len(given_up)]
        assert all_of_it == (len(given_up) == len(bodies) - hit)
        assert consumer.empty
        producer = Producer(box, consumer.sequence, refuse)
        producer.append(b"new")
        assert delivered + list(consumer.records()) == [*bodies[:hit], b"new"]


def test_discard_tells_what_was_given_up_as_far_as_it_can_be_read(box: Box) -> None:
    consumer, _ = publish(box, [b"good", b"refused later on", b"third"], 0)
    for one in consumer.records():
        if one == b"refused later on":  # whoever applies records refused this one
            break
    assert consumer.discard() == ([b"refused later on", b"third"], True)
    assert consumer.empty


@examples(100)
@given(BODIES, st.integers(0, 2**64 - 1) | st.integers(0, 2 * SMALL))
def test_discard_never_fails_and_leaves_an_empty_ring_whatever_the_head(
    shared_box: Box, bodies: list[bytes], head: int
) -> None:
    with small():
        box = fresh(shared_box)
        consumer, _ = publish(box, bodies, 0)
        box.words[W_HEAD] = head
        read_until_refused(consumer)
        consumer.discard()
        assert consumer.empty
        assert 0 <= box.words[W_HEAD] - box.words[W_TAIL] <= SMALL
        Producer(box, consumer.sequence, refuse).append(b"new")
        assert list(consumer.records()) == [b"new"]


def test_discard_says_when_it_cannot_read_everything(box: Box) -> None:
    """Whoever asks must then suppose that everybody was concerned."""
    consumer, starts = publish(box, [b"good", b"refused", b"damaged", b"last"], 0)
    box.memory[PAGE + starts[2] + ENTRY] ^= 1
    delivered, refused = read_until_refused(consumer)
    assert (delivered, refused) == ([b"good", b"refused"], True)
    assert consumer.discard() == ([], False)
    consumer, _ = publish(fresh(box), [b"good"], 0)
    box.words[W_HEAD] += 3
    assert consumer.discard() == ([], False)
    assert consumer.empty


def test_an_empty_journal_yields_nothing(tmp_path: Path) -> None:
    consumer = Consumer(Box(str(tmp_path / "box"), max_connections=1))
    assert consumer.empty
    assert list(consumer.records()) == []
    assert consumer.discard() == ([], True)


# ---- compiled


COMPILED = vars(journal)["_journal"]
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.sampled_from(
    [2**k + d for k in (7, 8, 15, 16, 31, 32, 63) for d in (-1, 0)]
)
FIELDS = st.recursive(
    NUMBERS | NUMBERS.map(lambda n: -n // 2) | st.booleans() | st.binary(max_size=70_000) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=20).map(tuple),
    max_leaves=20,
)


@pytest.mark.skipif(COMPILED is None, reason="no compiler when this was installed")
@examples(200)
@given(records=st.lists(st.lists(FIELDS, max_size=7).map(tuple), max_size=5), offset=st.integers(0, SEGMENT_MAX // 8))
def test_a_record_is_published_alike_compiled_or_not(
    shared_box: Box, records: list[tuple[object, ...]], offset: int
) -> None:
    """Wherever the ring ends, and whatever the record holds."""
    rings = []
    for compiled in (True, False):
        box = fresh(shared_box)
        box.words[W_HEAD] = box.words[W_TAIL] = JOURNAL_SIZE - 8 * offset
        with mock.patch.object(journal, "_journal", COMPILED if compiled else None):
            producer = Producer(box, 7, refuse)
            for record in records:
                producer.publish(record)
        consumer = Consumer(box)
        consumer.resume(7)
        rings.append((box.words[W_HEAD], list(consumer.records())))
    assert rings[0] == rings[1]
    assert rings[0][1] == [msgpack.packb(record) for record in records]


@pytest.mark.skipif(COMPILED is None, reason="no compiler when this was installed")
def test_compiled_publishing_leaves_what_it_cannot_do_itself(box: Box) -> None:
    """No room, a record that must be split, numbers and types that no record has."""
    where = box.address, JOURNAL_SIZE
    assert COMPILED.publish(*where, 0, 1, (1,)) is None
    assert COMPILED.publish(box.address, 0, JOURNAL_SIZE, 1, (1,)) is None
    for odd in ((bytes(SEGMENT_MAX),), (2**64,), (1.5,), ([1],), ("\ud800",), ((((((((((1,),),),),),),),),),)):
        assert COMPILED.publish(box.address, 0, 0, 1, odd) is None
    assert box.words[W_HEAD] == 0
