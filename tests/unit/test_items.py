"""Items: tables that refuse what contradicts them, and output that waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery_box import items
from recovery_box.items import M32, PENDING_MAX, Chunk, Connection, ItemError, Items, PendingOutput, Table
from tests.model.support import examples

# ---- tables


def test_an_item_is_found_until_it_is_deleted() -> None:
    table: Table[int, str] = Table("thing", 4)
    table.insert(1, "one")
    assert 1 in table
    assert (table.find(1), table.get(1), len(table), list(table)) == ("one", "one", 1, ["one"])
    table.update(1, "uno")
    assert table.find(1) == "uno"
    assert table.delete(1) == "uno"
    assert 1 not in table
    assert (table.get(1), len(table), list(table)) == (None, 0, [])


def test_what_contradicts_a_table_is_refused_and_changes_nothing() -> None:
    table: Table[int, str] = Table("thing", 2)
    table.insert(1, "one")
    with pytest.raises(ItemError, match="thing 1 is there already"):
        table.insert(1, "again")
    for touch in (table.find, table.delete, lambda key: table.update(key, "x")):
        with pytest.raises(ItemError, match="no thing 2"):
            touch(2)
    table.insert(2, "two")
    with pytest.raises(ItemError, match="more than 2"):
        table.insert(3, "three")
    assert list(table) == ["one", "two"]
    table.delete(1)
    table.insert(3, "three")
    assert list(table) == ["two", "three"]


@examples(100)
@given(st.lists(st.tuples(st.sampled_from(["insert", "update", "delete"]), st.integers(0, 4), st.integers())))
def test_a_table_is_a_bounded_dictionary(steps: list[tuple[str, int, int]]) -> None:
    table: Table[int, int] = Table("thing", 3)
    model: dict[int, int] = {}
    for what, key, value in steps:
        fine = (key not in model and len(model) < 3) if what == "insert" else key in model
        try:
            if what == "delete":
                assert table.delete(key) == model.pop(key, None)
            else:
                getattr(table, what)(key, value)
                model[key] = value
            assert fine
        except ItemError:
            assert not fine
    assert list(table) == list(model.values())


def test_there_is_a_table_of_each_kind_of_item_and_all_are_empty() -> None:
    tables = [getattr(Items(), name) for name in Items.__slots__]
    assert all(isinstance(table, Table) and not len(table) for table in tables)
    assert len({table.kind for table in tables}) == len(tables)


def test_two_connections_share_nothing_to_begin_with() -> None:
    one, other = (Connection(n, n, n, 0, True, True) for n in (1, 2))
    one.watches[b"/", b""] = 1
    one.transactions[1] = 1
    one.pending.append(0, b"x")
    assert (other.watches, other.transactions, other.pending.size) == ({}, {}, 0)


# ---- pending output


@examples(200)
@given(
    st.one_of(st.just(0), st.integers(M32 - 40, M32), st.integers(0, M32)),
    st.lists(st.one_of(st.binary(min_size=1, max_size=20), st.integers(0, 30)), max_size=30),
)
def test_pending_output_is_the_end_of_a_stream(start: int, steps: list[bytes | int]) -> None:
    """Against the whole stream as one string: `append` makes it longer, `trim` says how much has moved on."""
    pending = PendingOutput()
    stream, moved = b"", 0
    for step in steps:
        if isinstance(step, bytes):
            if not pending.chunks:
                moved = len(stream)  # everything before went straight into the region
            pending.append((start + len(stream)) & M32, step)
            stream += step
        else:
            moved = max(moved, min(moved + step, len(stream)))
            pending.trim((start + moved) & M32)
        left = stream[moved:]
        assert b"".join(chunk.data for chunk in pending.chunks) == left
        assert pending.size == len(left)
        assert pending.end == ((start + len(stream)) & M32 if left else None)
        position = start + moved
        for chunk in pending.chunks:
            assert chunk.position == position & M32
            position += len(chunk.data)


def test_trimming_twice_or_to_an_older_position_changes_nothing() -> None:
    pending = PendingOutput()
    pending.append(100, b"abcdef")
    for made in (100, 60, 0):
        pending.trim(made)
        assert list(pending.chunks) == [Chunk(100, b"abcdef")]
    for _ in range(2):
        pending.trim(103)
        assert list(pending.chunks) == [Chunk(103, b"def")]
        assert pending.size == 3


def test_trimming_beyond_the_end_leaves_nothing() -> None:
    pending = PendingOutput()
    pending.append(M32 - 1, b"abcd")
    pending.trim(10)
    assert (list(pending.chunks), pending.size, pending.end) == ([], 0, None)


@examples(200)
@given(
    st.one_of(st.just(0), st.integers(M32 - 40, M32), st.integers(0, M32)),
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=8),
    st.integers(0, 200),
)
def test_what_another_has_trimmed_is_trimmed_too(start: int, chunks: list[bytes], moved: int) -> None:
    pending, stream = PendingOutput(), b""
    for chunk in chunks:
        pending.append((start + len(stream)) & M32, chunk)
        stream += chunk
    pending.begin_at((start + moved) & M32)
    assert b"".join(chunk.data for chunk in pending.chunks) == stream[moved:]
    assert pending.size == len(stream[moved:])
    assert pending.end == ((start + len(stream)) & M32 if stream[moved:] else None)


def test_what_has_moved_gigabytes_ago_is_trimmed_too() -> None:
    pending = PendingOutput()
    pending.append(100, b"old")
    pending.begin_at((100 + (1 << 31) + 7) & M32)
    assert (list(pending.chunks), pending.size) == ([], 0)


@pytest.mark.parametrize("position", [99, 101, 105, 107, 0])
def test_output_out_of_order_is_refused(position: int) -> None:
    pending = PendingOutput()
    pending.append(100, b"abcdef")
    with pytest.raises(ItemError, match="does not follow"):
        pending.append(position, b"x")
    assert pending.size == 6


def test_pending_output_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PENDING_MAX >= 1 << 20
    monkeypatch.setattr(items, "PENDING_MAX", 10)
    pending = PendingOutput()
    pending.append(0, b"x" * 10)
    with pytest.raises(ItemError, match="too much"):
        pending.append(10, b"y")
    pending.trim(4)
    pending.append(10, b"y" * 4)
    assert pending.size == 10


@examples(200)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.integers(0, 6)), max_size=12), st.integers(1, 6))
def test_expired_output_is_dropped_and_what_follows_moves_up(parts: list[tuple[bytes, int]], now: int) -> None:
    """A deadline of 0 never comes."""
    pending, start = PendingOutput(), M32 - 20
    for data, deadline in parts:
        pending.append(start if pending.end is None else pending.end, data, deadline)
    dropped = pending.expire(now)
    assert [chunk.data for chunk in dropped] == [data for data, deadline in parts if 0 < deadline <= now]
    kept = [data for data, deadline in parts if not 0 < deadline <= now]
    assert [chunk.data for chunk in pending.chunks] == kept
    assert pending.size == sum(map(len, kept))
    assert pending.end == ((start + pending.size) & M32 if kept else None)
    for before, after in zip(list(pending.chunks), list(pending.chunks)[1:], strict=False):
        assert after.position == (before.position + len(before.data)) & M32
    assert pending.expire(now) == []
