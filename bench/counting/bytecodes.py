"""Counts the bytecodes that a section executes, and the C functions that it calls.

For: `bench.counting.stored`, tests.
Guarantees: the same program gives the same figures, on any machine, with the same minor version of Python.
Does not know: what a bytecode or a C function costs.
"""

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from bench.counting.workload import Section, sections

TIMES = 10

Counts = dict[str, float]
"""Of each section, once through it."""


def bytecodes_of(section: Section, times: int = TIMES) -> float:
    """Bytecodes executed."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
        return trace

    _hooked(sys.gettrace, sys.settrace, trace, section, times)
    return count / times


def profile_of(section: Section, times: int = TIMES) -> Counter[str]:
    """Bytecodes executed by each function, by its module and name."""
    found: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            found[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"] += 1
        return trace

    _hooked(sys.gettrace, sys.settrace, trace, section, times)
    return Counter({name: count // times for name, count in found.items()})


def _hooked(get: Callable[[], Any], put: Callable[[Any], None], hook: Any, section: Section, times: int) -> None:
    before = get()
    with _no_garbage_of_others():
        put(hook)
        try:
            for _ in range(times):
                section()
        finally:
            put(before)


@contextmanager
def _no_garbage_of_others() -> Iterator[None]:
    """What is collected meanwhile may have been anybody's, and its finalizers would be counted."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def calls_of(section: Section, times: int = TIMES) -> float:
    """Calls of functions written in C."""
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event == "c_call":
            count += 1

    _hooked(sys.getprofile, sys.setprofile, profile, section, times)
    return count / times


def count_all() -> dict[str, Counts]:
    """Bytecodes and calls of every section of the workload."""
    with sections() as everything:
        return {"bytecodes": _each(everything, bytecodes_of), "calls": _each(everything, calls_of)}


def _each(everything: Mapping[str, Section], count: Any) -> Counts:
    return {name: count(section) for name, section in everything.items()}
