"""`python -m tests.mutants [NAME...]`: breaks the daemon in each way, runs the tests, and writes which one caught it.

The table goes to standard output and, when all mutations were tried, into docs/testing.md.  Ends with status 1 if one was
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
    return f"| {mutation.what} | `{mutation.module}` | `{caught.removeprefix('tests/')}` |"


def write(rows: list[str]) -> None:
    """Into the documentation."""
    text = DOC.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = ["| mutation | in | caught by |", "|---|---|---|"]
    DOC.write_text(before + BEGIN + "\n".join([*head, *rows]) + "\n" + END + after)


def main() -> int:
    """All, or those named."""
    chosen = [m for m in MUTATIONS if not sys.argv[1:] or m.name in sys.argv[1:]]
    rows, escaped = [], 0
    for mutation in chosen:
        caught = catch(mutation)
        escaped += caught == NOT_CAUGHT
        rows.append(row(mutation, caught))
        print(f"{mutation.name:28} {caught}", flush=True)
    if len(chosen) == len(MUTATIONS):
        write(rows)
    print(f"{len(chosen) - escaped} of {len(chosen)} broken daemons were caught")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
