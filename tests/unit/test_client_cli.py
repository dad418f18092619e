"""The command line of the client, run in this process against a small daemon that keeps nodes in a dictionary."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.client.cli import main
from protocol.errors import StoreError
from protocol.ops import Op
from protocol.payload import one_string, string_and_rest, strings
from protocol.wire import Message
from tests.unit.test_client_fake import FakeDaemon, event, no, ok, token_of

Run = Callable[..., tuple[int, str, str]]


class Tree:
    """Answers for nodes in a dictionary, transactions being only counted.  Nodes named `secret` cannot be read."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {b"/": b""}
        self.perms: dict[bytes, bytes] = {}
        self.quotas = {b"": {b"nodes": 1000, b"watches": 128}, b"7": {b"nodes": 10, b"watches": 11}}
        """By domid, the global ones under none."""
        self.conflicts = 0
        self.commits = 0

    def answer(self, message: Message) -> bytes:
        try:
            return ok(message, self._grant(Op(message.op), message.payload)) + self._event(message)
        except StoreError as error:
            return no(message, error.name)

    def _grant(self, op: Op, payload: bytes) -> bytes:
        match op:
            case Op.READ:
                return self.values[self._node(one_string(payload))]
            case Op.DIRECTORY:
                top = self._node(one_string(payload)).rstrip(b"/") + b"/"
                below = [path[len(top) :] for path in self.values if path.startswith(top) and path != top]
                return b"".join(name + b"\0" for name in below if b"/" not in name)
            case Op.GET_PERMS:
                return self.perms.get(self._node(one_string(payload)), b"n0\0")
            case Op.SET_PERMS:
                path, self.perms[self._node(strings(payload)[0])] = string_and_rest(payload)
            case Op.WRITE | Op.MKDIR:
                path, value = string_and_rest(payload)
                if b"." in path:
                    raise StoreError("EINVAL")
                for end in [i for i, byte in enumerate(path) if byte == ord("/") and i]:
                    self.values.setdefault(path[:end], b"")
                self.values[path] = value
            case Op.RM:
                doomed = self._node(one_string(payload))
                self.values = {p: v for p, v in self.values.items() if p != doomed and not p.startswith(doomed + b"/")}
            case Op.TRANSACTION_START:
                return b"1\0"
            case Op.TRANSACTION_END if payload == b"T\0":
                if self.conflicts:
                    self.conflicts -= 1
                    raise StoreError("EAGAIN")
                self.commits += 1
            case Op.GET_QUOTA:
                *domid, name = strings(payload) or [b""]
                quotas = self.quotas.get(b"".join(domid))
                if quotas is None:
                    raise StoreError("ENOENT")
                return b"%d\0" % quotas[name] if name else b" ".join(quotas) + b"\0"
            case Op.SET_QUOTA:
                *domid, name, number = strings(payload)
                self.quotas[b"".join(domid)][name] = int(number)
            case Op.CONTROL:
                return b" ".join(strings(payload)) + (b"\n\0" if payload.startswith(b"line") else b"\0")
        return b"OK\0"

    def _node(self, path: bytes) -> bytes:
        if path not in self.values:
            raise StoreError("ENOENT")
        if path.endswith(b"secret"):
            raise StoreError("EACCES")
        return path

    def _event(self, message: Message) -> bytes:
        if message.op != Op.WATCH:
            return b""
        path = strings(message.payload)[0].decode()
        return event(path, token_of(message)) + event(f"{path}/x", token_of(message))


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def socket_path(tmp_path: Path, tree: Tree) -> Iterator[str]:
    with FakeDaemon(tmp_path / "socket", tree.answer) as daemon:
        yield daemon.path


@pytest.fixture
def run(socket_path: str, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs a command: its status, output and complaints."""

    def command(*words: str) -> tuple[int, str, str]:
        status = main(["--socket", socket_path, *words])
        sys.stdout.flush()
        output, complaints = capfdbinary.readouterr()
        return status, output.decode("latin1"), complaints.decode()

    return command


@pytest.fixture
def example(tree: Tree) -> Tree:
    """A few nodes."""
    tree.values |= {b"/b": b"", b"/b/c": b"v\n", b"/b/c/d": b'q"', b"/a": b"\0"}
    tree.perms[b"/b/c"] = b"n0\0r7\0"
    return tree


# Looking


@pytest.mark.usefixtures("example")
def test_ls_shows_a_tree_with_values(run: Run) -> None:
    assert run("ls") == (0, 'b = ""\n c = "v\\n"\n  d = "q""\na = "\\000"\n', "")


@pytest.mark.usefixtures("example")
def test_ls_can_show_permissions_and_whole_paths(run: Run) -> None:
    assert run("ls", "-p", "/b") == (0, 'c = "v\\n"   (n0,r7)\n d = "q""   (n0)\n', "")
    assert run("ls", "-f", "/b") == (0, '/b/c = "v\\n"\n/b/c/d = "q""\n', "")


def test_ls_goes_on_behind_what_may_not_be_read(run: Run, example: Tree) -> None:
    example.values |= {b"/secret": b"x", b"/z": b"y"}
    assert run("ls")[:2] == (0, 'b = ""\n c = "v\\n"\n  d = "q""\na = "\\000"\nsecret:  (EACCES)\nz = "y"\n')


def test_ls_goes_as_deep_as_the_store(run: Run, tree: Tree) -> None:
    path = b""
    for _ in range(1100):
        path += b"/x"
        tree.values[path] = b""
    status, output, _ = run("ls", "-f")
    assert (status, output.count("\n")) == (0, 1100)


@pytest.mark.usefixtures("example")
def test_list_shows_names_or_paths(run: Run) -> None:
    assert run("list") == (0, "b\na\n", "")
    assert run("list", "/b", "/") == (0, "c\nb\na\n", "")
    assert run("list", "-p", "/b", "/") == (0, "/b/c\n/b\n/a\n", "")


@pytest.mark.usefixtures("example")
def test_read_shows_escaped_values(run: Run) -> None:
    assert run("read", "/b/c") == (0, "v\\n\n", "")
    assert run("read", "-p", "/b/c", "/a") == (0, "/b/c: v\\n\n/a: \\000\n", "")


@pytest.mark.usefixtures("example")
def test_read_can_show_bytes_as_they_are(run: Run) -> None:
    assert run("read", "-R", "/b/c", "/a") == (0, "v\n\0", "")


def test_several_values_are_read_in_one_transaction(run: Run, example: Tree) -> None:
    run("read", "/a")
    assert example.commits == 0
    example.conflicts = 2
    assert run("read", "/a", "/b")[0] == 0
    assert example.commits == 1


@pytest.mark.usefixtures("example")
def test_perms_shows_the_permission_list(run: Run) -> None:
    assert run("perms", "/b/c") == (0, "n0,r7\n", "")
    assert run("perms", "/b/c", "/a") == (0, "/b/c: n0,r7\n/a: n0\n", "")


@pytest.mark.usefixtures("example")
def test_exists_answers_by_its_status_alone(run: Run) -> None:
    assert run("exists", "/a", "/b") == (0, "", "")
    assert run("exists", "/a", "/nope") == (1, "", "")


def test_what_may_not_be_read_does_not_exist(run: Run, tree: Tree) -> None:
    tree.values[b"/secret"] = b""
    assert run("exists", "/secret") == (1, "", "")


# Changing


def test_write_understands_escapes_unless_raw(run: Run, tree: Tree) -> None:
    assert run("write", "/a", "\\x00\\n\\101é") == (0, "", "")
    assert run("write", "-R", "/b", "\\n") == (0, "", "")
    assert tree.values == {b"/": b"", b"/a": b"\0\nA\xc3\xa9", b"/b": b"\\n"}


def test_several_values_are_written_in_one_transaction(run: Run, tree: Tree) -> None:
    tree.conflicts = 1
    assert run("write", "/a", "1", "/b", "2") == (0, "", "")
    assert (tree.commits, tree.values[b"/b"]) == (1, b"2")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["/a", "1", "/b"], "/b: a value is missing"), (["/a", "\\x"], "/a: \\\\x is not an escape sequence")],
)
def test_a_wrong_value_changes_nothing(run: Run, tree: Tree, words: list[str], complaint: str) -> None:
    assert run("write", *words) == (1, "", f"protocol.client: {complaint}\n")
    assert tree.values == {b"/": b""}


def test_mkdir_makes_nodes(run: Run, tree: Tree) -> None:
    assert run("mkdir", "/a/b", "/c") == (0, "", "")
    assert set(tree.values) == {b"/", b"/a", b"/a/b", b"/c"}


def test_rm_removes_subtrees(run: Run, example: Tree) -> None:
    assert run("rm", "/b", "/a") == (0, "", "")
    assert set(example.values) == {b"/"}


def test_rm_can_tidy_up_parents_without_value_and_children(run: Run, example: Tree) -> None:
    assert run("rm", "-t", "/b/c/d")[0] == 0
    assert b"/b/c" in example.values, "it has a value"
    assert run("rm", "-t", "/b/c")[0] == 0
    assert set(example.values) == {b"/", b"/a"}


def test_chmod_replaces_permission_lists(run: Run, example: Tree) -> None:
    assert run("chmod", "/b", "n1", "r0x2") == (0, "", "")
    assert example.perms == {b"/b": b"n1\0r2\0", b"/b/c": b"n0\0r7\0"}


def test_chmod_can_recurse(run: Run, example: Tree) -> None:
    example.conflicts = 1
    assert run("chmod", "-r", "/b", "b3") == (0, "", "")
    assert example.perms == dict.fromkeys([b"/b", b"/b/c", b"/b/c/d"], b"b3\0")


# Watching and controlling


def test_watch_shows_paths_and_ends_after_so_many(run: Run) -> None:
    assert run("watch", "-n", "2", "/a") == (0, "/a\n/a/x\n", "")
    assert run("watch", "-n", "1", "-d", "0", "/a", "/b")[0] == 0


def test_watch_can_leave_out_what_lies_deeper(run: Run) -> None:
    assert run("watch", "-d", "0", "-w", "0.05", "/a") == (1, "/a\n", "protocol.client: no event within 0.05 s\n")


def test_control_shows_the_answer_with_a_newline(run: Run) -> None:
    assert run("control", "print", "word") == (0, "print word\n", "")
    assert run("control", "line") == (0, "line\n", "")


def test_quotas_are_shown_and_set_for_all_and_for_one_domain(run: Run) -> None:
    assert run("quota") == (0, "nodes              1000\nwatches            128\n", "")
    assert run("quota", "-d", "7", "nodes") == (0, "nodes              10\n", "")
    assert run("quota", "-d", "7", "nodes", "5000") == (0, "", "")
    assert run("quota", "-d", "7") == (0, "nodes              5000\nwatches            11\n", "")
    assert run("quota", "watches", "50") == (0, "", "")
    assert run("quota", "watches") == (0, "watches            50\n", "")
    assert run("quota", "-d", "9") == (1, "", "protocol.client: domain 9: No such file or directory (ENOENT)\n")


# Failing


@pytest.mark.parametrize(
    "words",
    [
        ["read", "/nope"], ["read", "/", "/nope"], ["ls", "/nope"], ["list", "/nope"], ["rm", "/nope"],
        ["perms", "/nope"], ["chmod", "/nope", "n0"], ["chmod", "-r", "/nope", "n0"],
    ],
)  # fmt: skip
def test_a_missing_node_is_one_line_and_status_1(run: Run, words: list[str]) -> None:
    assert run(*words) == (1, "", "protocol.client: /nope: No such file or directory (ENOENT)\n")


def test_a_refused_path_is_named(run: Run) -> None:
    assert run("write", "/a.b", "x") == (1, "", "protocol.client: /a.b: Invalid argument (EINVAL)\n")
    assert run("mkdir", "/ok", "/a.b") == (1, "", "protocol.client: /a.b: Invalid argument (EINVAL)\n")


def test_a_value_too_long_is_explained(run: Run) -> None:
    status, _, complaint = run("write", "/a", "x" * 5000)
    assert (status, complaint.count("\n")) == (1, 1)
    assert "/a: E2BIG: the request needs 5003 bytes" in complaint


def test_no_daemon_is_one_line_and_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", str(tmp_path / "none"), "ls"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("protocol.client: cannot connect to ")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    "words", [[], ["frobnicate"], ["read"], ["chmod", "/a"], ["chmod", "/a", "x0"], ["watch", "-n", "x", "/a"]]
)
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


# As a program


def program(*words: str, path: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    # A shell that runs the tests in the background has their children ignore interrupts.
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "protocol.client", *words],
        env=os.environ | {"XENSTORED_PATH": path},
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.usefixtures("example")
def test_it_runs_as_a_program(socket_path: str) -> None:
    with program("read", "/b/c", path=socket_path) as process:
        assert process.communicate(timeout=10) == (b"v\\n\n", b"")
    assert process.returncode == 0


def test_a_closed_pipe_ends_it_quietly(socket_path: str, tree: Tree) -> None:
    tree.values |= {b"/%d" % number: bytes(1000) for number in range(100)}
    read_end, write_end = os.pipe()
    with program("ls", path=socket_path, stdout=write_end) as process:
        os.close(write_end)
        os.close(read_end)
        _, complaints = process.communicate(timeout=10)
    assert complaints == b""
    assert process.returncode == 1


def test_an_interrupt_ends_a_watch_quietly(socket_path: str) -> None:
    with program("watch", "/a", path=socket_path) as process:
        assert isinstance(process.stdout, io.BufferedReader)
        assert process.stdout.readline() == b"/a\n"
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=10)
    assert (process.returncode, complaints) == (130, b"")
