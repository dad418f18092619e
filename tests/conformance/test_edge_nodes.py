"""Edge cases of paths and of the operations on nodes.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
Cases of the edge-case table covered here: 5-11, 13, 18-20, 22-25, 30, 117-122, 142.
"""

from __future__ import annotations

import itertools

import pytest

from tests.conformance.wire import Client, Event, Op, strings
from tests.oracle.daemons import Daemon

# ---- paths


@pytest.mark.parametrize("path", ["//tool", "/tool/", "/to.ol", "/to ol", "/t%", "/\xe9", "/tool//x", "/local/domain/"])
@pytest.mark.parametrize(
    ("op", "rest"),
    [
        (Op.READ, b""),
        (Op.WRITE, b"v"),
        (Op.MKDIR, b""),
        (Op.RM, b""),
        (Op.DIRECTORY, b""),
        (Op.GET_PERMS, b""),
        (Op.SET_PERMS, b"n0\0"),
        (Op.WATCH, b"t\0"),
        (Op.UNWATCH, b"t\0"),
        (Op.DIRECTORY_PART, b"0\0"),
    ],
)
def test_a_malformed_path_is_einval(client: Client, op: Op, rest: bytes, path: str) -> None:
    """core.c:canonicalize, valid_chars; XSA-481 (a path ending in a slash)"""
    assert client.outcome(op, strings(path) + rest) == "EINVAL"


@pytest.mark.parametrize(
    ("op", "rest"),
    [
        (Op.READ, b""),
        (Op.WRITE, b"v"),
        (Op.MKDIR, b""),
        (Op.RM, b""),
        (Op.DIRECTORY, b""),
        (Op.DIRECTORY_PART, b"0\0"),
    ],
)
def test_special_nodes_are_not_part_of_the_tree(client: Client, op: Op, rest: bytes) -> None:
    """core.c:get_node allow_special"""
    assert client.outcome(op, strings("@releaseDomain") + rest) == "EINVAL"


def test_an_at_sign_elsewhere_is_an_ordinary_character(client: Client, node: str) -> None:
    """core.c:valid_chars"""
    client.write(f"{node}/@x", b"v")
    assert client.directory(node) == [b"@x"]


def test_a_relative_path_on_a_socket_lies_below_domain_0(client: Client, home: str) -> None:
    """domain.c:get_implicit_path"""
    client.write("rel/x", b"v")
    assert client.read(f"{home}/rel/x") == b"v"


def test_paths_of_privileged_clients_are_limited_by_the_message_alone(client: Client, node: str) -> None:
    """core.c:canonicalize"""
    path = node + "/" + "x" * (4000 - len(node) - 1)
    client.write(path, b"v")
    assert client.read(path) == b"v"


# ---- a store that nobody has touched


def test_a_fresh_store_has_tool_and_xenstored(fresh_daemon: Daemon) -> None:
    """core.c:setup_structure"""
    with Client(fresh_daemon.socket) as client:
        assert client.directory("/") == [b"tool"]
        assert client.directory("/tool") == [b"xenstored"]
        assert client.get_perms("/") == client.get_perms("/tool/xenstored") == [b"n0"]


def test_any_domain_may_see_releases_but_not_introductions(fresh_daemon: Daemon) -> None:
    """core.c:setup_structure"""
    with Client(fresh_daemon.socket) as client:
        assert client.get_perms("@releaseDomain") == [b"n0", b"r32757"]
        assert client.get_perms("@introduceDomain") == [b"n0"]


@pytest.mark.parametrize("path", ["@foo", "@releaseDomain/1"])
def test_an_unknown_special_node_is_enoent(client: Client, path: str) -> None:
    """core.c:do_get_perms"""
    assert client.outcome(Op.GET_PERMS, strings(path)) == "ENOENT"


# ---- writing and making


def test_missing_parents_are_made_empty_and_cause_no_event(client: Client, node: str) -> None:
    """core.c:create_node"""
    client.watch(node, "w")
    client.write(f"{node}/d/e/f", b"v")
    assert client.events_so_far() == [Event(f"{node}/d/e/f".encode(), b"w")]
    assert client.read(f"{node}/d") == client.read(f"{node}/d/e") == b""


def test_the_root_can_be_written(client: Client) -> None:
    """core.c:do_write"""
    client.write("/", b"v")
    assert client.read("/") == b"v"
    client.write("/", b"")


def test_mkdir_on_an_existing_node_changes_nothing(client: Client, node: str) -> None:
    """core.c:do_mkdir"""
    client.write(f"{node}/a", b"v")
    client.watch(node, "w")
    client.mkdir(f"{node}/a")
    assert client.events_so_far() == []
    assert client.read(f"{node}/a") == b"v"


def test_mkdir_on_the_root_is_ok(client: Client) -> None:
    """core.c:do_mkdir"""
    client.mkdir("/")


# ---- removing


def test_removing_a_missing_node_is_ok_when_its_parent_is_there(client: Client, node: str) -> None:
    """core.c:do_rm"""
    client.watch(node, "w")
    client.rm(f"{node}/zz")
    assert client.events_so_far() == []


def test_removing_a_missing_node_of_a_missing_parent_is_enoent(client: Client, node: str) -> None:
    """core.c:do_rm"""
    assert client.outcome(Op.RM, strings(f"{node}/mm/zz")) == "ENOENT"


def test_the_root_cannot_be_removed(client: Client) -> None:
    """core.c:do_rm"""
    assert client.outcome(Op.RM, b"/\0") == "EINVAL"
    tx = client.start()
    assert client.outcome(Op.RM, b"/\0", tx=tx) == "EINVAL"
    client.abort(tx)
    assert client.exists("/tool")


def test_a_very_deep_tree_can_be_made_read_and_removed(client: Client, node: str) -> None:
    """XSA-418: nothing recurses on what a client sends"""
    path = node + "/d" * 1900
    client.write(path, b"v")
    assert client.read(path) == b"v"
    assert client.outcome(Op.CONTROL, b"check\0") == b"OK\0"
    client.rm(f"{node}/d")
    assert client.directory(node) == []


# ---- listing


def test_children_are_listed_in_the_order_of_their_making(client: Client, node: str) -> None:
    """core.c:add_child"""
    for name in "cab":
        client.mkdir(f"{node}/{name}")
    assert client.directory(node) == [b"c", b"a", b"b"]
    client.rm(f"{node}/a")
    client.mkdir(f"{node}/a")
    client.write(f"{node}/c", b"again")
    assert client.directory(node) == [b"c", b"b", b"a"]


def part(client: Client, path: str, offset: int) -> tuple[bytes, bytes]:
    """Generation and the rest of a part of a directory."""
    generation, _, rest = client.call(Op.DIRECTORY_PART, strings(path, offset)).partition(b"\0")
    assert generation.isdigit()
    return generation, rest


def test_the_part_of_an_empty_directory_is_an_empty_string(client: Client, node: str) -> None:
    """core.c:send_directory_part"""
    assert part(client, node, 0)[1] == b"\0"


@pytest.mark.parametrize(
    ("offset", "rest"),
    [(0, b"aa\0b\0\0"), (3, b"b\0\0"), (1, b"a\0b\0\0"), (5, b"\0"), (6, b"\0"), (-1, b"\0")],
    ids=["start", "second name", "inside a name", "end", "after the end", "negative"],
)
def test_a_part_begins_anywhere_and_ends_with_an_empty_string(
    client: Client, node: str, offset: int, rest: bytes
) -> None:
    """core.c:send_directory_part"""
    client.mkdir(f"{node}/aa")
    client.mkdir(f"{node}/b")
    assert part(client, node, offset)[1] == rest


def test_a_directory_part_takes_exactly_two_strings(client: Client, node: str) -> None:
    """core.c:send_directory_part"""
    for payload in (strings(node), strings(node, 0, 0), f"{node}\x000".encode()):
        assert client.outcome(Op.DIRECTORY_PART, payload) == "EINVAL"


def test_a_large_directory_is_listed_in_whole_names_part_by_part(client: Client, node: str) -> None:
    """core.c:send_directory_part; client side: xs.c:xs_directory_part"""
    names = [f"child-{i:04}-{'x' * 30}".encode() for i in range(300)]
    for name in names:
        client.mkdir(f"{node}/{name.decode()}")
    listing = b""
    for _ in itertools.repeat(None, 100):
        rest = part(client, node, len(listing))[1]
        assert len(rest) <= 4096
        listing += rest
        if listing.endswith(b"\0\0"):
            break
    assert listing == b"".join(name + b"\0" for name in names) + b"\0"


def test_a_generation_changes_with_the_node_itself_and_its_children(client: Client, node: str) -> None:
    """core.c:access_node"""
    client.mkdir(f"{node}/kid")
    seen = [part(client, node, 0)[0]]

    def changed() -> bool:
        seen.append(part(client, node, 0)[0])
        return seen[-1] != seen[-2]

    client.write(f"{node}/kid", b"v")
    assert not changed(), "a child's value"
    client.write(node, b"v")
    assert changed(), "its own value"
    client.mkdir(f"{node}/new")
    assert changed(), "a new child"
    client.rm(f"{node}/new")
    assert changed(), "a removed child"
    client.set_perms(node, "n0", "r5")
    assert changed(), "its permissions"
    client.rm(f"{node}/absent")
    assert not changed(), "nothing"
