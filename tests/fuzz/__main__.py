"""`python -m tests.fuzz SECONDS [TARGET...]`: coverage-guided fuzzing (atheris) of each target for so many seconds.

As many targets at a time as there are processors.
An input that fails is put into `tests/fuzz/found/TARGET`, where it is a test from then on, and the status is 1.
Each target has a process of its own: atheris instruments what is imported, and ends its process itself.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LONGEST: Final = 4096
NAMES: Final = ("framer", "requests", "ring", "records", "journal", "options")
MEMORY: Final = 1024
"""MiB that a target may take."""
SECONDS_AN_INPUT: Final = 10


def fuzz(name: str, seconds: float, folder: str) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(
        include=["protocol", "recovery_box", "xenstore_state", "xenstore_logic", "xenstored"]
    ):
        from tests.fuzz import targets
    from tests.fuzz.corpus import FOUND, seeds

    assert set(targets.TARGETS) == set(NAMES)
    for number, seed in enumerate(seeds(name)):
        (Path(folder) / f"seed-{number}").write_bytes(seed)
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    how = [
        f"-max_total_time={max(1, int(seconds))}",
        f"-max_len={LONGEST}",
        "-len_control=0",  # long ones from the start: a run is short
        f"-rss_limit_mb={MEMORY}",
        f"-timeout={SECONDS_AN_INPUT}",
        f"-artifact_prefix={FOUND / name}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *how, folder], targets.TARGETS[name])
    atheris.Fuzz()


def run(name: str, seconds: float) -> bool:
    """Fuzzes a target in a process of its own; prints what came of it; false if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.fuzz", str(seconds), "--here", name, folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    last = [line for line in lines if "cov:" in line][-1:] or lines[-1:]
    runs = [line.split()[-1] for line in lines if "number_of_executed_units" in line]
    said = f"{name:10} {''.join(runs):>9} inputs  {''.join(last).strip()}"
    if done.returncode:
        said = "\n".join((said, done.stdout, done.stderr))
    print(said, flush=True)
    return done.returncode == 0


def main() -> int:
    """All that are asked for."""
    seconds = float(sys.argv[1])
    if sys.argv[2:3] == ["--here"]:
        fuzz(sys.argv[3], seconds, sys.argv[4])
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        passed = list(workers.map(lambda name: run(name, seconds), sys.argv[2:] or NAMES))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
