"""The machine and the versions that figures belong to.

For: `bench.__main__`, `bench.micro`.
Guarantees: facts as the machine tells them now; what cannot be found out is `unknown`.
Does not know: the figures.
"""

import os
import platform
import subprocess
import time
from pathlib import Path

from bench.interpreter import Build
from tests.oracle.build import ROOT

BUSY = 0.5
"""Load average above which a machine is not at rest."""


def conditions_now(build: Build) -> dict[str, str]:
    """To be taken before measuring."""
    load = os.getloadavg()[0]
    busy = " (the machine was busy: judge by CPU times)" if load > BUSY else ""
    return {
        "build measured": build.describe(),
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "xen-utils-4.17": _output("dpkg-query", "-W", "-f", "${Version}", "xen-utils-4.17"),
        "kernel": platform.release(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load average at the start": f"{load:.2f}{busy}",
    }


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
