"""The recovery box's file: one owner, known layout, room that is really there, words that are never seen half-written."""

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recovery_box
from recovery_box import box as box_module
from recovery_box.box import (
    CONTROL_SIZE,
    JOURNAL_SIZE,
    MAGIC,
    NO_REQUEST,
    PAGE,
    REGION_SIZE,
    SLOT_SIZE,
    SLOTS_AT,
    VERSION,
    W_ACTIVE,
    W_ASLEEP,
    W_HEAD,
    W_MAGIC,
    W_SERVED,
    W_TAIL,
    W_VERSION,
    Box,
    BoxError,
    BoxFull,
    SharedWords,
    shared_memory_directory,
)
from recovery_box.items import M32
from tests.model.support import examples

U64 = st.integers(0, 2**64 - 1)


def allocated(box: Box) -> int:
    """Bytes of the file that are really there."""
    return os.fstat(box.fd).st_blocks * 512


# ---- the file


def test_a_new_box_carries_magic_and_version_and_no_request(tmp_path: Path) -> None:
    box = Box(str(tmp_path / "box"), max_connections=2)
    assert box.memory[:8] == b"XOARBOX\0"
    assert (box.words[W_MAGIC], box.words[W_VERSION]) == (MAGIC, VERSION)
    assert box.words[W_ACTIVE] == NO_REQUEST
    assert [box.words[w] for w in (W_HEAD, W_TAIL, W_SERVED, W_ASLEEP)] == [0, 0, 0, 0]


def test_the_magic_is_stored_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees it sees a box whose other words are valid."""
    stored: list[int] = []
    store = SharedWords.__setitem__

    def note(self: SharedWords, index: int, value: int) -> None:
        stored.append(index)
        store(self, index, value)

    monkeypatch.setattr(SharedWords, "__setitem__", note)
    Box(str(tmp_path / "box"), max_connections=2)
    assert stored[-1] == W_MAGIC
    assert W_VERSION in stored[:-1]


def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    box = Box(str(tmp_path / "box"), max_connections=2)
    assert os.fstat(box.fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(box.fd)


def test_a_box_in_use_cannot_be_opened_again_and_is_not_touched(tmp_path: Path) -> None:
    path = str(tmp_path / "box")
    first = Box(path, max_connections=2)
    first.words[W_HEAD] = 4242
    with pytest.raises(BoxError, match="in use by another daemon"):
        Box(path, max_connections=2)
    assert first.words[W_HEAD] == 4242


def test_a_box_in_use_by_another_process_cannot_be_opened(tmp_path: Path) -> None:
    path = str(tmp_path / "box")
    code = f"from recovery_box.box import Box; b = Box({path!r}, 2); print('there', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        with pytest.raises(BoxError):
            Box(path, max_connections=2)
        other.kill()
    Box(path, max_connections=2)


def test_what_a_dead_daemon_left_is_cleared(tmp_path: Path) -> None:
    path = str(tmp_path / "box")
    child = os.fork()
    if not child:
        try:
            first = Box(path, max_connections=2)
            first.ensure_slot(0)
            first.words[W_HEAD] = 4242
            first.memory[SLOTS_AT : SLOTS_AT + 8] = b"rubbish!"
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"rubbish!" in Path(path).read_bytes()
    second = Box(path, max_connections=2)
    second.ensure_slot(0)
    assert second.words[W_HEAD] == 0
    assert second.memory[SLOTS_AT : SLOTS_AT + 8] == bytes(8)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"data")
    (tmp_path / "box").symlink_to(target)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        Box(str(tmp_path / "box"), max_connections=2)
    assert target.read_bytes() == b"data"


def test_a_refused_box_leaks_no_descriptor(tmp_path: Path) -> None:
    path = str(tmp_path / "box")
    kept = Box(path, max_connections=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(BoxError):
            Box(path, max_connections=2)
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept.words[W_MAGIC] == MAGIC


def test_unlink_removes_the_name_twice_without_complaint_and_the_memory_stays(tmp_path: Path) -> None:
    box = Box(str(tmp_path / "box"), max_connections=2)
    box.unlink()
    box.unlink()
    assert not (tmp_path / "box").exists()
    box.words[W_SERVED] = 7
    assert box.words[W_SERVED] == 7


# ---- room


def test_everything_that_is_touched_was_allocated_before(tmp_path: Path) -> None:
    box = Box(str(tmp_path / "box"), max_connections=200)
    assert allocated(box) >= SLOTS_AT
    assert allocated(box) < SLOTS_AT + 2 * SLOT_SIZE
    for slot in (0, 1, 31, 32, 33, 63, 64, 150, 199):
        offset = box.ensure_slot(slot)
        assert offset == SLOTS_AT + slot * SLOT_SIZE
        assert allocated(box) >= offset + SLOT_SIZE
        box.memory[offset + SLOT_SIZE - 1] = 1
    assert os.fstat(box.fd).st_size >= SLOTS_AT + 200 * SLOT_SIZE


def test_a_slot_that_is_there_is_found_without_a_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(str(tmp_path / "box"), max_connections=8)
    box.ensure_slot(3)
    monkeypatch.setattr(os, "posix_fallocate", None)
    assert box.ensure_slot(3) == SLOTS_AT + 3 * SLOT_SIZE
    assert box.ensure_slot(0) == SLOTS_AT


def test_slots_and_the_journal_do_not_overlap(tmp_path: Path) -> None:
    assert SLOTS_AT == PAGE + JOURNAL_SIZE
    assert SLOT_SIZE == CONTROL_SIZE + 2 * REGION_SIZE
    assert SLOT_SIZE % 64 == 0  # words of two connections lie in different cache lines


@pytest.mark.parametrize("slot", [-1, 2, 1000])
def test_a_slot_beyond_the_most_connections_is_refused(tmp_path: Path, slot: int) -> None:
    box = Box(str(tmp_path / "box"), max_connections=2)
    with pytest.raises(BoxFull, match="all 2 connections"):
        box.ensure_slot(slot)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_is_said_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    box = Box(str(tmp_path / "box"), max_connections=200)
    box.ensure_slot(0)
    real = os.posix_fallocate

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BoxFull, match="no room"):
        box.ensure_slot(100)
    assert box.ensure_slot(0) == SLOTS_AT
    monkeypatch.setattr(os, "posix_fallocate", real)
    box.ensure_slot(100)
    assert allocated(box) >= SLOTS_AT + 101 * SLOT_SIZE


def test_a_file_system_too_full_for_the_journal_leaves_no_lock_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(BoxFull):
            Box(str(tmp_path / "box"), max_connections=2)
    Box(str(tmp_path / "box"), max_connections=2)


# ---- where it lies


def test_a_directory_on_tmpfs_is_kept_another_is_not() -> None:
    if not box_module._is_tmpfs("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    assert shared_memory_directory("/dev/shm") == "/dev/shm"
    assert shared_memory_directory("/proc") == "/dev/shm"


def test_below_a_tmpfs_is_on_it_even_through_a_link(tmp_path: Path) -> None:
    if not box_module._is_tmpfs("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    (tmp_path / "link").symlink_to("/dev/shm")
    assert box_module._is_tmpfs("/dev/shm/not/there/yet")
    assert box_module._is_tmpfs(str(tmp_path / "link" / "below"))


# ---- words


@examples(100)
@given(st.lists(st.tuples(st.integers(0, 15), U64), max_size=20))
def test_words_are_native_64_bit_numbers_at_their_index(stores: list[tuple[int, int]]) -> None:
    memory = bytearray(128)
    words = SharedWords(memory)
    expected = [0] * 16
    for index, value in stores:
        words[index] = value
        expected[index] = value
    assert [words[i] for i in range(16)] == expected == list(words.view)
    assert b"".join(value.to_bytes(8, sys.byteorder) for value in expected) == bytes(memory)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_word_that_is_too_large_is_refused_and_nothing_is_stored(value: int) -> None:
    words = SharedWords(bytearray(16))
    words[1] = 5
    with pytest.raises(ValueError, match="invalid value"):
        words[1] = value
    assert words[1] == 5


def test_the_view_and_the_accessor_are_the_same_words() -> None:
    words = SharedWords(bytearray(32))
    words.view[3] = 2**63
    words[2] = 9
    assert (words[3], words.view[2]) == (2**63, 9)


def test_words_written_by_different_processes_lie_in_different_cache_lines() -> None:
    lines = [{W_MAGIC, W_VERSION}, {W_HEAD, W_ACTIVE, W_SERVED}, {W_TAIL}, {W_ASLEEP}]
    places = [{index * 8 // 64 for index in line} for line in lines]
    assert all(len(place) == 1 for place in places)
    assert len(set.union(*places)) == len(lines)


def test_another_process_never_sees_a_word_half_written(tmp_path: Path) -> None:
    box = Box(str(tmp_path / "box"), max_connections=1)
    patterns = (M32, M32 << 32)
    box.words[W_SERVED] = patterns[0]
    child = os.fork()
    if not child:
        try:
            words = box.words
            while True:
                words[W_SERVED] = patterns[0]
                words[W_SERVED] = patterns[1]
        finally:
            os._exit(0)
    try:
        view = box.words.view
        seen = {view[W_SERVED] for _ in range(200_000)}
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert seen <= set(patterns)


def test_nothing_in_the_package_stores_through_pack_into() -> None:
    """It clears its target before it writes: a reader, or a death, in between sees a position that never was."""
    for source in Path(recovery_box.__file__).parent.glob("*.py"):
        names = {n.attr for n in ast.walk(ast.parse(source.read_text())) if isinstance(n, ast.Attribute)}
        assert "pack_into" not in names, source
