"""Boots the machine of `image.py` under QEMU with a job for dom0, and tells how each of the job's checks came out.

For: `test_xen.py`.  Guarantees: no QEMU outlives the call or the process; a dom0 or hypervisor that crashed, or hangs, ends the
boot.  Does not know what the jobs do: `dom0/` does.

The folder of a boot becomes /host in dom0: the job's name and settings, the project and the packages it needs as one archive;
dom0 leaves its results, the daemon's output and the guests' consoles there.  The console of the machine stands beside it.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tests.oracle.build import ROOT
from tests.xen import image
from tests.xen.dom0.checks import NOT_RUN, RESULTS, SETTINGS, Result, Settings

RUNS: Final = image.CACHE / "runs"
BOOT_SECONDS: Final = 480
"""Far more than a boot takes, but the machine may have much else to do."""
LOOK_SECONDS: Final = 0.5
PACKAGES: Final = ("protocol", "recovery_box", "xenstore_state", "xenstore_logic", "xenstored")
TESTS: Final = (
    *("tests/__init__.py", "tests/xen/__init__.py", "tests/xen/dom0", "tests/conformance"),
    *(f"tests/oracle/{name}.py" for name in ("__init__", "build", "daemons")),
)
"""What dom0 needs of the tests: the jobs, and the conformance suite."""

MACHINE_MB: Final = 1536
DOM0_MB: Final = 900
PROCESSOR: Final = "max,-smap,-smep,-xsave"
"""dom0 crashes with SMAP and SMEP; with XSAVE, SSE registers get mixed up between domains.  Both are QEMU's doing."""
XEN_LINE: Final = (
    f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MB}M,max:{DOM0_MB}M dom0_max_vcpus=1 no-real-mode edd=off noreboot=1 "
    "loglvl=warning guest_loglvl=warning"
)
KERNEL_LINE: Final = "console=hvc0 rdinit=/init mitigations=off nokaslr random.trust_cpu=on"
CRASHES: Final = (b"Dom0 crashed", b"Panic on CPU", b"Kernel panic - not syncing")
JOB: Final = """\
mkdir -p /opt/xoarstore && cd /opt/xoarstore && tar -xf /host/project.tar || exit 1
PYTHONPATH=/opt/xoarstore exec python3 -m tests.xen.dom0.run
"""


@dataclass
class Boot:
    """How a boot ended."""

    results: dict[str, Result]
    end: str
    folder: Path
    explained: bool = False

    def result(self, check: str) -> Result:
        """How one check came out."""
        return self.results.get(check, Result(NOT_RUN, f"the machine ended before this check: {self.end}", 0.0))

    def explain(self) -> str:
        """The last lines of what the machine, the daemon and the guests said; once."""
        if self.explained:
            return f"(see above, and {self.folder})"
        self.explained = True
        texts = [self.folder / "console", *sorted((self.folder / "host").glob("*.log"))]
        return "\n".join(f"---- {path}\n{_tail(path)}" for path in texts)


def run(job: str, settings: Settings, stop: threading.Event, seconds: float = BOOT_SECONDS) -> Boot:
    """Boots, waits for the end of the job, and returns what came of it; ends early when `stop` is set, or after so long."""
    folder = RUNS / f"{job}-{settings.under_test}"
    shutil.rmtree(folder, ignore_errors=True)
    host = folder / "host"
    host.mkdir(parents=True)
    (host / SETTINGS).write_text(json.dumps({"job": job, **settings._asdict()}))
    (host / "job").write_text(JOB)
    _archive(host / "project.tar")
    end = _qemu(folder, stop, seconds)
    (host / "project.tar").unlink()
    return Boot(_results(host / RESULTS), end, folder)


def _results(path: Path) -> dict[str, Result]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {name: Result(*rest) for name, *rest in rows}


def _tail(path: Path, lines: int = 40) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join([line for line in text.splitlines() if line][-lines:])


# ---- QEMU


def _qemu(folder: Path, stop: threading.Event, seconds: float) -> str:
    """Runs the machine until it powers off, crashes or takes too long; how it ended."""
    console = folder / "console"
    command = [
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-m", str(MACHINE_MB)),
        *("-display", "none", "-nodefaults", "-no-reboot", "-monitor", "none", "-serial", f"file:{console}"),
        *("-fsdev", f"local,id=host,path={folder / 'host'},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host0,disable-modern=off"),
        *("-kernel", str(image.XEN), "-append", XEN_LINE),
        *("-initrd", f"{image.KERNEL} {KERNEL_LINE},{image.DOM0}"),
    ]
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        return _wait(process, console, stop, seconds)
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], console: Path, stop: threading.Event, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            status = process.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        else:
            return "powered off" if status == 0 else f"QEMU ended with status {status}"
        said = console.read_bytes() if console.exists() else b""
        crash = next((words for words in CRASHES if words in said), None)
        if crash is not None:
            return crash.decode()
        if stop.is_set():
            return "interrupted"
        if time.monotonic() > deadline:
            return f"not over after {seconds:g} s"


# ---- what dom0 gets


def _archive(path: Path) -> None:
    """This project's packages and those they depend on, as one file: dom0 reads one file much faster than a tree."""
    with tarfile.open(path, "w") as archive:
        for name in (*PACKAGES, *TESTS):
            archive.add(ROOT / name, name)
        for source, name in _dependencies():
            archive.add(source, name, recursive=False)


def _dependencies() -> Iterator[tuple[Path, str]]:
    """The files of the packages that the project needs at run time."""
    wanted, known = ["xoarstore"], set[str]()
    while wanted:
        name = wanted.pop()
        if name in known:
            continue
        known.add(name)
        distribution = importlib.metadata.distribution(name)
        requirements = [Requirement(text) for text in distribution.requires or []]
        wanted += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
        if name != "xoarstore":
            for file in distribution.files or []:
                source = Path(os.path.abspath(str(file.locate())))
                if not str(file).startswith("..") and source.is_file():
                    yield source, str(file)
