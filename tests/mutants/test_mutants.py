"""Some broken daemons are caught, every mutation still fits the code, and what is not broken passes for not broken.

`make mutants` tries all of them.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.mutants.__main__ import NOT_CAUGHT, catch
from tests.mutants.mutations import MUTATIONS, Mutation
from tests.mutants.patch import BY_NAME, ROOT, Stale, applied, environment

A_HANDFUL = ("write-unchecked", "rm-keeps-count", "no-first-event")


def text_of(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_mutation_fits_the_code(mutation: Mutation) -> None:
    broken = applied(mutation, text_of(mutation.module))
    compile(broken, mutation.module, "exec")
    assert all((ROOT / test).exists() for test in mutation.tests)


def test_a_piece_that_is_not_there_is_an_error() -> None:
    with pytest.raises(Stale):
        applied(MUTATIONS[0], "")


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len(BY_NAME) == len(MUTATIONS) >= 20


@pytest.mark.parametrize("name", A_HANDFUL)
def test_a_broken_daemon_is_caught(name: str) -> None:
    assert catch(BY_NAME[name]) != NOT_CAUGHT


def test_processes_that_are_started_are_broken_too() -> None:
    program = "from xenstore_state.access import inherited, Subject; print(inherited(((0, 1),), Subject(5, privileged=False)))"
    out = [
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        for env in (environment("heirs"), None)
    ]
    assert [done.stdout for done in out] == ["((0, 1),)\n", "((0, 5),)\n"]
