"""What a path is: `protocol.paths`."""

import ctypes
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import StoreError
from protocol.paths import canonical, check_path, components, counted_length, domain_path, is_special, parent

ALPHABET = (string.ascii_letters + string.digits + "-/_@").encode()
HOME = b"/local/domain/7"

NAMES = st.binary(min_size=1, max_size=8).map(lambda b: bytes(ALPHABET[i % len(ALPHABET)] for i in b))
COMPONENTS = NAMES.map(lambda name: name.replace(b"/", b"-"))
ABSOLUTE = st.lists(COMPONENTS, max_size=6).map(lambda names: b"/" + b"/".join(names))
PATHS = st.binary(max_size=20).map(lambda b: bytes(ALPHABET[i % len(ALPHABET)] for i in b)) | st.binary(max_size=12)

LIBC = ctypes.CDLL(None)


def refused(path: bytes) -> bool:
    try:
        canonical(path, HOME)
    except StoreError as error:
        return error.name == "EINVAL"
    return False


@pytest.mark.parametrize("byte", range(256))
def test_the_alphabet_is_letters_digits_and_four_signs(byte: int) -> None:
    assert refused(b"/a" + bytes([byte]) + b"z") == (byte not in ALPHABET)


@pytest.mark.parametrize("path", [b"", b"/a/", b"a/", b"//", b"//a", b"/a//b", b"a//b", b"/a b", b"/a.b", b"/a\0"])
def test_malformed_paths_are_einval(path: bytes) -> None:
    assert refused(path)


@pytest.mark.parametrize("path", [b"/", b"/a", b"/a/b", b"/-_@", b"/a@", b"@releaseDomain", b"@releaseDomain/1"])
def test_absolute_and_special_paths_are_canonical_already(path: bytes) -> None:
    assert canonical(path, HOME) == path


@pytest.mark.parametrize("path", [b"a", b"data/x", b"-", b"a@b", b"0"])
def test_other_paths_lie_below_the_home_of_the_caller(path: bytes) -> None:
    assert canonical(path, HOME) == HOME + b"/" + path


@given(PATHS)
def test_a_path_is_refused_exactly_by_these_rules(path: bytes) -> None:
    good = (
        path != b""
        and not set(path) - set(ALPHABET)
        and b"//" not in path
        and (path == b"/" or not path.endswith(b"/"))
    )
    assert refused(path) == (not good)


@given(PATHS)
def test_a_canonical_path_is_its_own_canonical_form(path: bytes) -> None:
    if not refused(path):
        absolute = canonical(path, HOME)
        check_path(absolute)
        assert canonical(absolute, b"/local/domain/9") == absolute


@given(PATHS)
def test_check_path_accepts_what_canonical_leaves_as_it_is(path: bytes) -> None:
    try:
        check_path(path)
    except StoreError:
        assert refused(path) or canonical(path, HOME) != path
    else:
        assert canonical(path, HOME) == path


@given(ABSOLUTE)
def test_components_join_to_the_path(path: bytes) -> None:
    assert b"/" + b"/".join(components(path)) == path


def test_the_root_has_no_components() -> None:
    assert components(b"/") == ()


@given(st.lists(COMPONENTS, min_size=1, max_size=6))
def test_the_parent_lacks_the_last_component(names: list[bytes]) -> None:
    assert components(parent(b"/" + b"/".join(names))) == tuple(names[:-1])


@pytest.mark.parametrize("path", [b"/", b"/a", b"@releaseDomain"])
def test_the_root_is_the_parent_of_itself_of_its_children_and_of_special_nodes(path: bytes) -> None:
    assert parent(path) == b"/"


@pytest.mark.parametrize(
    ("path", "special"), [(b"@introduceDomain", True), (b"@x/1", True), (b"/@x", False), (b"/", False), (b"a@", False)]
)
def test_special_nodes_begin_with_at(path: bytes, special: bool) -> None:
    assert is_special(path) == special


def test_the_home_of_a_domain() -> None:
    assert domain_path(0) == b"/local/domain/0"
    assert domain_path(65535) == b"/local/domain/65535"


@pytest.mark.parametrize(
    ("path", "length"),
    [
        (b"/", 1),
        (b"/tool", 5),
        (b"/local/domain/7/data", 4),
        (b"/local/domain/65535/x/y", 3),
        (b"/local/domain/7", 15),
        (b"/local/domain/123456/x", 22),
        (b"/local/domain/x/y", 17),
        (b"/x/local/domain/7/y", 19),
        (b"@releaseDomain", 14),
    ],
)
def test_the_home_in_front_of_a_path_does_not_count(path: bytes, length: int) -> None:
    assert counted_length(path) == length


@given(
    st.sampled_from([b"/local/domain/", b"/local/domai/", b"/"]),
    st.text("0123456789-ax", max_size=7),
    st.sampled_from([b"", b"/", b"/data", b"/a/b/c"]),
)
@example(b"/local/domain/", "-1", b"/data")
@example(b"/local/domain/", "-12345", b"/data")
def test_the_home_is_what_the_c_library_scans(prefix: bytes, domid: str, rest: bytes) -> None:
    path = prefix + domid.encode() + rest
    if refused(path):
        return
    number, end = ctypes.c_uint(), ctypes.c_int(0)
    LIBC.sscanf(path, b"/local/domain/%5u/%n", ctypes.byref(number), ctypes.byref(end))
    assert counted_length(path) == len(path) - end.value
