"""Makes a workload of what a real Xen host asks of xenstored: `python -m bench.record [--from RECORD]`.

Boots the real Xen under QEMU with this daemon as dom0's and has `xl` lead guests through a day (`tests/xen/dom0/day.py`; some six
minutes, emulated), or takes the record of an earlier boot, and writes the day of one of them to bench/workloads/. The format stands
in bench/workloads/README.md.

Guarantees: requests stand in the order in which the daemon dealt with them, over the connections on which they came; what is the
recorded guest's own (domids, UUID, name) is replaced by words that a replay fills in; what is left out is named in that README.
"""

import argparse
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from protocol.ops import Op
from tests.xen import image, machine
from tests.xen.dom0.checks import PASSED, Settings

WORKLOADS: Final = Path(__file__).parent / "workloads"
BOOT_SECONDS: Final = 1800
PHASES: Final = ("boot", "run", "move", "end")
MARK: Final = b"/record/phase"
KERNEL: Final = "k"
"""dom0's kernel, over its ring."""
CONSOLED: Final = "c"
"""xenconsoled's socket."""
HOST: Final = "h"
"""Some socket that lives as long as the host."""
LASTING: Final = (b"/vm\0", b"/libxl\0")
"""Nodes that the first guest of a host makes and no guest removes."""
LEAVES_SOMETHING: Final = frozenset({Op.WRITE, Op.MKDIR, Op.SET_PERMS, Op.RM})
NAMES_DOMAIN: Final = frozenset({Op.GET_DOMAIN_PATH, Op.INTRODUCE, Op.RELEASE, Op.IS_DOMAIN_INTRODUCED, Op.RESUME})


class Line(NamedTuple):
    """One line of the record: a request, or something that happened."""

    what: str
    connection: int
    domid: int
    ring: bool
    op: Op
    tx: int
    payload: bytes
    failed: str
    """The name of the error, or empty."""
    reply: bytes

    @classmethod
    def parse(cls, text: str) -> "Line":
        words = text.split()
        if words[0] != "q":
            number = int(words[1])
            return cls(words[0], number, number, False, Op.ERROR, 0, b"", "", b"")
        payload, reply = (b"" if word == "-" else bytes.fromhex(word) for word in (words[6], words[8]))
        failed = reply.rstrip(b"\0").decode() if int(words[7]) == Op.ERROR else ""
        return cls(
            "q",
            int(words[1]),
            int(words[2]),
            words[3] == "ring",
            Op(int(words[4])),
            int(words[5]),
            payload,
            failed,
            reply,
        )


class Item(NamedTuple):
    """One line of a workload."""

    actor: str
    op: str
    tx: int = 0
    outcome: str = ""
    payload: bytes = b""

    def text(self) -> str:
        if not self.outcome:
            return f"{self.op} {self.actor}"
        return f"{self.actor} {self.op} {self.tx or '-'} {self.outcome} {escaped(self.payload)}".rstrip()


def escaped(data: bytes) -> str:
    """Bytes as one printable word or several; see the README."""
    special = {0: "\\0", 0x5C: "\\\\"}
    return "".join(special.get(b, chr(b) if 0x20 <= b < 0x7F else f"\\x{b:02x}") for b in data)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.record", description="Makes a workload of a guest's day.")
    parser.add_argument("--from", dest="record", type=Path, help="the record of an earlier boot")
    parser.add_argument("--guest", choices=("pvh", "pv"), default="pvh", help="migrated live, or saved and restored")
    arguments = parser.parse_args(argv)
    record = arguments.record or _boot()
    if record is None:
        return 1
    lines = [Line.parse(text) for text in record.read_text().splitlines()]
    target = WORKLOADS / f"{arguments.guest}-day.txt"
    target.write_text("".join(f"{text}\n" for text in workload(lines, arguments.guest)))
    print(f"written: {target}")
    return 0


def _boot() -> Path | None:
    image.build()
    boot = machine.run("day", Settings(), threading.Event(), BOOT_SECONDS)
    failed = [f"{name}: {result.text}" for name, result in boot.results.items() if result.outcome != PASSED]
    if failed or not boot.results:
        print("\n".join(failed), boot.explain(), sep="\n", file=sys.stderr)
        return None
    return boot.folder / "host" / "record.log"


# ---- from a record to a workload


def workload(lines: Sequence[Line], guest: str) -> Iterator[str]:
    """The lines of a guest's workload."""
    parts = _split(lines)
    day = Day([line for phase in PHASES for line in parts[f"{guest} {phase}"]])
    made = [Item(HOST, "MKDIR", 0, "ok", path) for path in LASTING]
    phases = {"host": [*day.items(parts["dom0 start"]), *day.consoled_watches(lines), *made]}
    for phase in PHASES:
        phases[phase] = list(day.items(parts[f"{guest} {phase}"]))
    phases |= standing(phases["boot"], phases["run"])
    for phase, items in phases.items():
        yield f"phase {phase}"
        yield from (item.text() for item in items)


def _split(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each phase, without the recording job's own: it marks the phases and waits by asking again and again."""
    own = next(line.connection for line in lines if line.payload.startswith(MARK))
    parts: dict[str, list[Line]] = {}
    phase = ""
    for line in lines:
        if line.what != "q" or line.connection != own:
            parts.setdefault(phase, []).append(line)
        elif line.payload.startswith(MARK):
            phase = line.payload.partition(b"\0")[2].decode()
        elif line.op == Op.WRITE:
            parts.setdefault(phase, []).append(line._replace(connection=0))
    return parts


class Day:
    """One guest's day: who its actors are, and what is its own in what they say."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lives: dict[int, int] = {}
        for line in lines:
            if line.ring and line.domid:
                self._lives.setdefault(line.domid, len(self._lives))
        domids = "|".join(map(str, self._lives)).encode()
        self._paths = re.compile(rb"((?:^|/)(?:local/domain|libxl|backend/\w+|device-model)/)(%s)(?=/|$)" % domids)
        self._whole = re.compile(rb"^(dom|[nrwb]|)(%s)$" % domids)
        uuid = next(match[1] for line in lines if (match := re.search(rb"/vm/([0-9a-f-]{36})", line.payload)))
        self._uuid = uuid
        self._name = next(
            line.payload.rpartition(b"\0")[2] for line in lines if line.payload.startswith(b"/vm/%s/name\0" % uuid)
        )
        self._consoled = next(
            line.connection for line in lines if self._own(line) == b"/local/domain/{0}/console\0dom{0}\0"
        )
        self._sockets: dict[int, str] = {0: HOST, self._consoled: CONSOLED}
        self._labels: dict[tuple[int, int], int] = {}
        self._created: set[int] = set()
        self._asked: set[int] = set()

    def items(self, lines: Sequence[Line]) -> Iterator[Item]:
        """The workload of one phase."""
        refused = _refused(lines)
        for number, line in enumerate(lines):
            if line.what == "q":
                yield from self._request(line, number in refused)
            elif line.what == "close":
                if line.connection in self._asked:
                    yield Item(self._socket(line.connection), "close")
            elif line.domid in self._lives:
                yield Item(str(self._lives[line.domid]), line.what)

    def consoled_watches(self, lines: Sequence[Line]) -> Iterator[Item]:
        """What xenconsoled watches for all guests; it registers that as soon as it runs, whatever the phase."""
        for line in lines:
            if line.connection == self._consoled and line.op == Op.WATCH and line.payload.startswith(b"@"):
                yield Item(CONSOLED, "WATCH", 0, "ok", line.payload)

    def _request(self, line: Line, refused: bool) -> Iterator[Item]:
        payload = self._own(line)
        shared = line.op == Op.RM and b"{" not in payload and not (line.ring and line.domid)
        if refused or shared:
            return
        for life in self._lives.values():
            if b"{%d}" % life in payload and life not in self._created:
                self._created.add(life)
                yield Item(str(life), "create")
        self._asked.add(line.connection)
        tx = line.tx
        if line.op == Op.TRANSACTION_START and not line.failed:
            tx = int(line.reply.rstrip(b"\0"))
            self._labels[line.connection, tx] = 1 + len(self._labels)
        label = self._labels.get((line.connection, tx), 0)
        yield Item(self._actor(line), line.op.name, label, line.failed or "ok", payload)

    def _actor(self, line: Line) -> str:
        if line.ring:
            return f"g{self._lives[line.domid]}" if line.domid else KERNEL
        return self._socket(line.connection)

    def _socket(self, connection: int) -> str:
        return self._sockets.setdefault(connection, f"s{len(self._sockets) - 2}")

    def _own(self, line: Line) -> bytes:
        """The payload with words for what is the guest's own."""
        fields = line.payload.replace(self._uuid, b"{u}").split(b"\0")
        for number, field in enumerate(fields):
            fields[number] = self._paths.sub(lambda m: m[1] + self._life(m[2]), field)
            match = self._whole.match(field)
            if match is None:
                continue
            is_value = line.op == Op.WRITE and number == 1 and re.search(rb"(frontend-id|/domid)$", fields[0])
            is_perm = line.op == Op.SET_PERMS and number > 0 and match[1]
            is_domid = (line.op in NAMES_DOMAIN and number == 0) or is_value
            if (match[1] == b"dom" and line.op in {Op.WATCH, Op.UNWATCH}) or is_perm or (is_domid and not match[1]):
                fields[number] = match[1] + self._life(match[2])
        if line.op == Op.WRITE and fields[0].endswith(b"/name"):
            fields[1] = fields[1].replace(self._name, b"{n}")
        return b"\0".join(fields)

    def _life(self, domid: bytes) -> bytes:
        return b"{%d}" % self._lives[int(domid)]


def _refused(lines: Sequence[Line]) -> set[int]:
    """Which lines belong to transactions that met a conflict: who made them began anew, and a replay must not do both."""
    refused: set[int] = set()
    begun: dict[tuple[int, int], list[int]] = {}
    for number, line in enumerate(lines):
        if line.what != "q":
            continue
        if line.op == Op.TRANSACTION_START and not line.failed:
            begun[line.connection, int(line.reply.rstrip(b"\0"))] = [number]
        elif line.tx and (line.connection, line.tx) in begun:
            begun[line.connection, line.tx].append(number)
            if line.op == Op.TRANSACTION_END:
                members = begun.pop((line.connection, line.tx))
                if line.failed == "EAGAIN":
                    refused.update(members)
    return refused


# ---- what stands in a host when a guest has come up


def standing(boot: Sequence[Item], run: Sequence[Item]) -> dict[str, list[Item]]:
    """Phases that leave what a guest that runs leaves, with few requests, and with rings and sockets opened last.

    These come last because what a request costs the other two daemons grows with them, and nobody measures setting up.
    """
    aborted = {item.tx for item in boot if item.op == "TRANSACTION_END" and item.payload.startswith(b"F")}
    made = [item for item in boot if item.outcome == "ok" and not (item.tx and item.tx in aborted)]
    changes = {op.name for op in LEAVES_SOMETHING}
    nodes = [Item("0", "create")]
    nodes += [i._replace(actor=HOST, tx=0) for i in made if i.op in changes and i.actor[0] in "sch"]
    asked = [i._replace(tx=0) for i in made if i.op in changes | {"WATCH"} and i.actor[0] in "kg"]
    asked = list(_without_ended_watches(asked, [*boot, *run]))
    kernel = [i for i in asked if i.actor == KERNEL]
    rings = [i._replace(actor=HOST) for i in made if i.op == "INTRODUCE"] + [i for i in asked if i.actor != KERNEL]
    closed = {item.actor for item in (*boot, *run) if item.op == "close"}
    sockets = [i for i in made if i.op == "WATCH" and i.actor[0] in "sc" and i.actor not in closed]
    sockets = list(_without_ended_watches(sockets, [*boot, *run]))
    silent = {i.actor for i in made if i.actor[0] == "s"} - closed - {i.actor for i in sockets}
    sockets += [next(i for i in made if i.actor == actor and i.op == "READ") for actor in sorted(silent)]
    sockets = [i._replace(tx=0) for i in sockets]
    return {
        "standing-nodes": nodes,
        "standing-kernel": kernel,
        "standing-rings": rings,
        "standing-sockets": sockets,
    }


def _without_ended_watches(items: Iterable[Item], all_items: Sequence[Item]) -> Iterator[Item]:
    ended = {(item.actor, item.payload) for item in all_items if item.op == "UNWATCH"}
    return (item for item in items if item.op != "WATCH" or (item.actor, item.payload) not in ended)


if __name__ == "__main__":
    sys.exit(main())
