"""`python -m tests.mutants [NAME...]`: breaks the daemon in each way, runs the tests, and writes which one caught it.

The table goes to standard output and into docs/testing.md.  Ends with status 1 if one was
not caught.  Each is tried with the tests named beside it; hypothesis begins with another seed every time, so that a
mutation that is only sometimes caught shows itself sooner or later.
"""

import re
import subprocess
import sys
from typing import Final

from tests.mutants.mutations import MUTATIONS, Mutation
from tests.mutants.patch import ROOT, environment

DOC: Final = ROOT / "docs" / "testing.md"
BEGIN, END = "<!-- mutants -->\n", "<!-- end of mutants -->\n"
FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
PATIENCE: Final = 300.0
NOT_CAUGHT: Final = "not caught"


def catch(mutation: Mutation) -> str:
    """The test that failed first; `NOT_CAUGHT` if none did."""
    for tests in mutation.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", tests]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment(mutation.name), capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            return f"{tests} (hangs)"
        if done.returncode == 1:
            found = FAILED.search(done.stdout)
            assert found is not None, done.stdout
            return found[1]
        if done.returncode:
            raise SystemExit(f"{mutation.name}: pytest ends with {done.returncode}\n{done.stdout}{done.stderr}")
    return NOT_CAUGHT


def row(mutation: Mutation, caught: str) -> str:
    """A line of the table."""
    return f"{beginning(mutation)} `{caught.removeprefix('tests/')}` |"


def beginning(mutation: Mutation) -> str:
    """Of its line: what is known before anything was tried."""
    return f"| {mutation.what} | `{mutation.module}` |"


def write(caught: dict[str, str]) -> None:
    """Into the documentation; what was not tried now stays as it was."""
    before, _, rest = DOC.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = ["| mutation | in | caught by |", "|---|---|---|"]
    for mutation in MUTATIONS:
        known = [line for line in table.splitlines() if line.startswith(beginning(mutation))]
        rows += [row(mutation, caught[mutation.name])] if mutation.name in caught else known
    DOC.write_text(before + BEGIN + "\n".join(rows) + "\n" + END + after)


def main() -> int:
    """All, or those named."""
    caught: dict[str, str] = {}
    for mutation in MUTATIONS:
        if not sys.argv[1:] or mutation.name in sys.argv[1:]:
            caught[mutation.name] = catch(mutation)
            print(f"{mutation.name:28} {caught[mutation.name]}", flush=True)
    write(caught)
    escaped = list(caught.values()).count(NOT_CAUGHT)
    print(f"{len(caught) - escaped} of {len(caught)} broken daemons were caught")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
