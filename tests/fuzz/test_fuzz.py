"""Every input that fuzzing begins with, or once found, is dealt with; and a short search without guidance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import NAMES
from tests.fuzz.corpus import FOUND, seeds
from tests.fuzz.targets import TARGETS
from tests.model.support import examples


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_inputs_found_earlier_are_dealt_with(name: str) -> None:
    count = 0
    for seed in seeds(name):
        TARGETS[name](seed)
        count += 1
    assert count > 1


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_dealt_with(name: str) -> None:
    @examples(60)
    @given(st.binary(max_size=300))
    def search(data: bytes) -> None:
        TARGETS[name](data)

    search()


def test_what_was_found_belongs_to_a_target() -> None:
    assert {path.name for path in FOUND.iterdir() if path.is_dir()} <= set(NAMES)
