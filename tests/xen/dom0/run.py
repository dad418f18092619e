"""dom0's half of a boot: runs the checks of a job one after another and leaves the results in the share."""

import importlib
import json
import time
import traceback
from pathlib import Path

from tests.xen.dom0.checks import (
    FAILED,
    NOT_RUN,
    PASSED,
    RESULTS,
    SETTINGS,
    SKIPPED,
    Check,
    Job,
    NotApplicable,
    Result,
    Settings,
)
from tests.xen.dom0.host import SHARE, Host


def main() -> None:
    """Runs the job that the share names."""
    settings = json.loads((SHARE / SETTINGS).read_text())
    job: Job = importlib.import_module(f"tests.xen.dom0.{settings.pop('job')}").JOB
    host = Host(Settings(**settings))
    useless = ""
    try:
        for check in job.checks:
            result = Result(NOT_RUN, useless, 0.0) if useless else _run(check, host)
            if check.essential and result.outcome == FAILED:
                useless = f"{check.name} failed"
            _tell(SHARE / RESULTS, check.name, result)
    finally:
        host.collect()


def _run(check: Check, host: Host) -> Result:
    began = time.monotonic()
    outcome, text = PASSED, ""
    try:
        check.body(host)
    except NotApplicable as e:
        outcome, text = SKIPPED, str(e)
    except Exception:
        outcome, text = FAILED, traceback.format_exc()
    text += "".join(f"\n{note}" for note in host.take_notes())
    return Result(outcome, text, time.monotonic() - began)


def _tell(path: Path, name: str, result: Result) -> None:
    with path.open("a") as f:
        f.write(json.dumps([name, *result]) + "\n")
    print(f"{result.outcome:8}{result.seconds:6.2f} s  {name}  {result.text}", flush=True)


if __name__ == "__main__":
    main()
