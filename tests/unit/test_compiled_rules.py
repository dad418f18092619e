"""What holds for modules that are compiled (`docs/decisions/007`), and mypy does not say: looked up in their text."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.oracle.build import ROOT

MODULES = sorted(
    path
    for package in ("protocol", "recovery_box", "xenstore_state", "xenstore_logic")
    for path in (ROOT / package).glob("*.py")
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def own(function: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function but those of functions in it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, FUNCTIONS):
            yield child
            yield from own(child)


def faults(text: str) -> Iterator[str]:
    """What breaks a rule."""
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.Lambda) and function.args.vararg is not None:
            yield f"line {function.lineno}: a lambda with *arguments does not compile"
        if not isinstance(function, FUNCTIONS):
            continue
        caught = defaultdict(set)
        for node in own(function):
            if isinstance(node, ast.ExceptHandler) and node.name and node.type is not None:
                caught[node.name].add(ast.unparse(node.type))
        for name, kinds in caught.items():
            if len(kinds) > 1:
                yield f"line {function.lineno}: {name!r} is of one type all through a function, and catches {kinds}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_module_keeps_the_rules(path: Path) -> None:
    assert not list(faults(path.read_text()))


def test_what_breaks_a_rule_is_found() -> None:
    assert list(faults("signal(1, lambda *_: None)"))
    assert list(faults("def f():\n try: g()\n except A as e: h(e)\n except B as e: h(e)"))
    assert not list(faults("def f():\n try: g()\n except A as e: h(e)\n def k():\n  try: g()\n  except B as e: h(e)"))
