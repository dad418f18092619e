"""Logic's steps, from readiness to the reply, and where in the code they lie.

Lanes and journal in Python take the place of the compiled ones, so that a crash can fall between any two of their stores;
where a step is inside a copy or a system call, what it works on is replaced by something that stops half-way.
"""

from __future__ import annotations

import ctypes
from typing import Any

from recovery_box import journal, lanes
from recovery_box.box import W_HEAD, Box
from recovery_box.custody import Handover
from recovery_box.journal import Producer
from recovery_box.lanes import Lane
from tests.torture.injections import Injector, after, before
from xenstore_logic import loop
from xenstore_logic.channels import Channel
from xenstore_logic.core import Core
from xenstore_logic.loop import Loop


class HalfWay:
    """Memory of which the last copy is only half done when the process dies."""

    def __init__(self, memory: Any, injector: Injector, step: str) -> None:
        self._memory = memory
        self._injector = injector
        self._step = step

    def __getitem__(self, where: slice) -> bytes:
        data: bytes = self._memory[where]
        return data

    def __setitem__(self, where: slice, data: bytes) -> None:
        if self._injector.due(self._step):
            half = len(data) // 2
            self._memory[where.start : where.start + half] = data[:half]
            self._injector.crash(self._step)
        self._memory[where] = data


class Words:
    """Shared words; something is done before one of them is stored."""

    def __init__(self, words: Any, index: int, injector: Injector, step: str) -> None:
        self._words = words
        self._index = index
        self._injector = injector
        self._step = step

    def __getitem__(self, index: int) -> int:
        word: int = self._words[index]
        return word

    def __setitem__(self, index: int, word: int) -> None:
        if index == self._index:
            self._injector.at(self._step)
        self._words[index] = word


def install(injector: Injector) -> None:
    """Patches the classes of Logic."""
    use_python()
    _starting(injector)
    _receiving(injector)
    _publishing(injector)
    _answering(injector)
    _sending(injector)
    _batches(injector)
    _connections(injector)


def use_python() -> None:
    """Takes lane and journal as they are in Python, in place of the compiled ones."""
    loop.BestLane = Lane  # type: ignore[attr-defined]
    vars(journal)["_journal"] = None


def _starting(injector: Injector) -> None:
    before(Loop, "recover", lambda *_: injector.at("forked, nothing done"))
    after(Loop, "recover", lambda *_: injector.at("what a death had left was taken up, nothing served"))


def _receiving(injector: Injector) -> None:
    after(lanes, "_recvmmsg", lambda n, *_: injector.at("in recvmmsg: bytes there, result not seen", when=n == 1))
    after(Lane, "receive", lambda got, *_: injector.at("received, handler not started", when=got > 0))
    before(Core, "serve", lambda *_: injector.at("before the request is applied"))


def _publishing(injector: Injector) -> None:
    def made(_: object, producer: Any, box: Box, *__: object) -> None:
        producer._memory = HalfWay(box.memory, injector, "half of a record copied")
        producer._words = Words(box.words.view, W_HEAD, injector, "record copied, its index not stored")

    after(Producer, "__init__", made)
    before(Producer, "publish", lambda *_: injector.at("applied, nothing published"))
    after(Producer, "publish", lambda *_: injector.at("published, output in no region"))


def _answering(injector: Injector) -> None:
    def made(_: object, lane: Any, *__: object) -> None:
        lane._memory = HalfWay(lane._memory, injector, "half of a reply copied")
        lane._words = Words(lane._words, lane._done_word, injector, "reply copied, not marked as answered")

    after(Lane, "__init__", made)
    after(Channel, "carry_out", lambda *_: injector.at("output for one of several connections made"))
    before(Loop, "flush", lambda self: injector.at("answered, nothing sent", when=self._dirty))


def _sending(injector: Injector) -> None:
    original = lanes._sendmmsg

    def sendmmsg(fd: int, header: ctypes.c_void_p, *more: Any) -> Any:
        injector.at("in sendmmsg: nothing sent yet")
        half = injector.due("in sendmmsg: half sent, result not seen")
        if half:
            words = ctypes.cast(header, ctypes.POINTER(ctypes.c_uint64))
            part = ctypes.cast(ctypes.c_void_p(words[lanes._IOV]), ctypes.POINTER(ctypes.c_uint64))
            part[1] = part[1] // 2 or 1
            words[lanes._IOV_COUNT] = 1  # of two pieces only the first, if it wraps
        result = original(fd, header, *more)
        if half:
            injector.crash("in sendmmsg: half sent, result not seen")
        injector.at("in sendmmsg: all sent, result not seen")
        return result

    lanes._sendmmsg = sendmmsg  # type: ignore[misc,assignment]


def _batches(injector: Injector) -> None:
    done = {"served": 0, "sent": 0}

    def turn(*_: object) -> None:
        done["served"] = 0

    def work(*_: object) -> None:
        if done["served"]:
            injector.at("half-way through a batch: some connections served")
        done["served"] += 1

    def flush(*_: object) -> None:
        done["sent"] = 0

    def send(*_: object) -> None:
        if done["sent"]:
            injector.at("half-way through a batch: some output sent")
        done["sent"] += 1

    before(Loop, "turn", turn)
    after(Loop, "turn", lambda *_: injector.at("turn over"))
    before(Loop, "work", work)
    before(Loop, "flush", flush)
    before(Lane, "send", send)


def _connections(injector: Injector) -> None:
    after(loop, "shut_down", lambda *_: injector.at("closing: hung up, not published"))
    before(Loop, "_let_go", lambda _, by: injector.at("closing: published, descriptor open", when=by.socket))
    before(Handover, "take", lambda *_: injector.at("descriptor waits, not taken"))
    after(Handover, "take", lambda got, *_: injector.at("descriptor taken, connection not known", when=got))
