"""Long chains of nodes are dropped without recursion, and without touching what is not theirs, in the compiled build too."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.interpreter import COMPILED, not_compiled

PROGRAM = Path(__file__).with_name("drop_deep_trees.py")


@pytest.mark.parametrize("build", ["sources", "compiled"])
def test_dropping_a_deep_tree_harms_nothing_beside_it(build: str) -> None:
    reason = not_compiled() if build == "compiled" else None
    if reason is not None:
        pytest.skip(reason)
    python = [str(COMPILED), "-P"] if build == "compiled" else [sys.executable]
    environment = {"PYTHONPATH": str(PROGRAM.parents[2])} if build == "sources" else {}
    done = subprocess.run([*python, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
