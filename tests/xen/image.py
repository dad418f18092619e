"""The machine that the tests boot: Debian's Xen, a dom0 and a guest, made of Debian packages.

    python -m tests.xen.image

For: `machine.py`.  Makes three files (hypervisor, kernel, dom0's file system with the guest's in it), in some 20 s and with
100 MB of downloads, or finds them made already.  Changes nothing outside its folder except that apt-get installs the
programs that are missing here.  Knows nothing of the project or of what the machine will do.
"""

import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.oracle.build import ROOT

CACHE: Final = ROOT / ".cache" / "xen"
FILES: Final = Path(__file__).parent / "files"
XEN: Final = CACHE / "out" / "xen"
KERNEL: Final = CACHE / "out" / "vmlinux"
DOM0: Final = CACHE / "out" / "dom0.cpio"
RECIPE: Final = CACHE / "out" / "recipe"

HOST_PACKAGES: Final = ("qemu-system-x86", "kmod", "cpio", "xz-utils")
DOM0_PACKAGES: Final = (
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "xen-hypervisor-4.17-amd64",
    "python3",
    "busybox-static",
    "strace",
    "kmod",
    "iproute2",
)
KERNEL_PACKAGE: Final = "linux-image-amd64"
NOT_UNPACKED: Final = (
    "linux-image",
    "xen-hypervisor",
    "gcc-",
    "udev_",
    "systemd",
    "debconf",
    "adduser",
    "dpkg_",
    "ucf",
)
NOT_NEEDED: Final = (
    *(f"usr/share/{name}" for name in ("doc", "man", "locale", "info", "lintian", "bash-completion", "zoneinfo")),
    *(f"usr/share/{name}*" for name in ("perl", "python")),
    *(f"usr/lib/x86_64-linux-gnu/{name}" for name in ("perl*", "gconv")),
    *(f"usr/lib/python3*/{name}" for name in ("test", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "distutils")),
    "boot",
    "var/run",
)
MODULES: Final = (
    *("xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs"),
    *("xen-blkback", "xen-netback", "xen-blkfront", "xen-netfront", "loop", "virtio_pci", "9p", "9pnet_virtio"),
)
DOM0_FOLDERS: Final = (
    *("proc", "sys", "dev", "run", "tmp", "root", "mnt", "guest", "etc/xen/scripts"),
    *("var/lib/xen", "var/lib/xenstored", "var/log/xen"),
)

GUEST_FOLDERS: Final = ("bin", "sbin", "proc", "sys", "dev", "mod", "lib64", "lib/x86_64-linux-gnu")
GUEST_BUSYBOX: Final = (
    *("cat", "dd", "dmesg", "echo", "grep", "head", "insmod", "ls", "mkdir", "mount", "poweroff", "seq", "sh", "sleep"),
    *("sync", "uname"),
)
GUEST_CLIENTS: Final = ("read", "write", "list", "ls", "rm", "watch", "exists", "chmod")
GUEST_LIBRARIES: Final = (
    *("ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1", "libm.so.6", "libz.so.1", "libexpat.so.1"),
    *("libxenstore.so.4", "libxentoolcore.so.1", "libxentoollog.so.1"),
)
GUEST_MODULES: Final = ("xenfs", "xen-privcmd", "xen-blkfront", "xen-netfront")
GUEST_PYTHON: Final = (
    *("__future__", "_collections_abc", "abc", "codecs", "genericpath", "io", "os", "posixpath", "stat", "struct"),
    *("encodings/__init__", "encodings/aliases", "encodings/utf_8", "encodings/ascii", "encodings/latin_1"),
)


class ImageError(Exception):
    """The machine cannot be made here; the text says why."""


def build() -> None:
    """Makes the machine, unless it stands there already.  Raises `ImageError`."""
    recipe = _recipe()
    if RECIPE.exists() and RECIPE.read_text() == recipe:
        return
    _install(HOST_PACKAGES)
    kernel_package = _download()
    root, kernel = CACHE / "dom0", CACHE / "kernel"
    for folder in (root, kernel, CACHE / "guest", CACHE / "out"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    _unpack_kernel(kernel_package, kernel)
    _unpack_dom0(root)
    version = _add_modules(kernel, root)
    _make_guest(root, version, CACHE / "guest")
    _finish_dom0(root)
    for folder in (root, kernel, CACHE / "guest"):
        shutil.rmtree(folder)
    RECIPE.write_text(recipe)


def missing() -> str | None:
    """Why the machine cannot be booted, or None."""
    if not RECIPE.exists() or RECIPE.read_text() != _recipe():
        return "the machine is not made: make test-xen"
    return None


def _recipe() -> str:
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted(FILES.iterdir())):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _run(*command: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join(map(str, command))[:200]
        raise ImageError(f"{words}: status {done.returncode}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


def _as_root(*command: str) -> str:
    return _run(*([] if os.getuid() == 0 else ["sudo", "-n"]), *command)


# ---- packages


def _install(packages: Sequence[str]) -> None:
    wanted = [p for p in packages if not _installed(p)]
    if not wanted:
        return
    print("installing", *wanted, flush=True)
    install = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y", "--no-install-recommends")
    try:
        _as_root(*install, *wanted)
    except ImageError:
        _as_root("apt-get", "update", "-q")
        _as_root(*install, *wanted)


def _installed(package: str) -> bool:
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Status}", package], capture_output=True, text=True, check=False
    )
    return "install ok installed" in asked.stdout


def _download() -> str:
    """Fetches every package of dom0 and what they depend on, and the kernel; the kernel's name."""
    print("downloading the packages of dom0", flush=True)
    try:
        return _download_listed()
    except ImageError:
        _as_root("apt-get", "update", "-q")
        return _download_listed()


def _download_listed() -> str:
    debs = CACHE / "debs"
    (debs / "partial").mkdir(parents=True, exist_ok=True)
    options = [f"Dir::Cache::archives={debs}", "Debug::NoLocking=1", "APT::Sandbox::User="]
    apt = ["apt-get", "-q", "-y", "--no-install-recommends", *(word for o in options for word in ("-o", o))]
    _run(*apt, "-o", "Dir::State::status=/dev/null", "--download-only", "install", *DOM0_PACKAGES)
    depends = _run("apt-cache", "depends", KERNEL_PACKAGE).split()
    kernel = next((word for word in depends if word.startswith("linux-image-") and word != KERNEL_PACKAGE), None)
    if kernel is None:
        raise ImageError(f"{KERNEL_PACKAGE} names no kernel")
    if not list(debs.glob(f"{kernel}_*.deb")):
        _run(*apt, "download", kernel, cwd=debs)
    return kernel


# ---- the kernel


def _unpack_kernel(package: str, folder: Path) -> None:
    deb = max((CACHE / "debs").glob(f"{package}_*.deb"), key=os.path.getmtime)
    _run("dpkg-deb", "-x", deb, folder)
    compressed = next((folder / "boot").glob("vmlinuz-*"))
    KERNEL.write_bytes(_vmlinux(compressed.read_bytes()))


def _vmlinux(image: bytes) -> bytes:
    """The ELF file inside a bzImage, so that emulated processors need not decompress it (Linux: x86 boot protocol)."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset :][:length]
    if not payload.startswith(b"\xfd7zXZ\0"):
        raise ImageError("the kernel is not compressed with xz")
    return lzma.LZMADecompressor().decompress(payload)


def _add_modules(kernel: Path, root: Path) -> str:
    """Copies the modules that the machine needs, and what they need; the kernel's version."""
    version = next((kernel / "lib" / "modules").iterdir()).name
    source, target = kernel / "lib" / "modules" / version, root / "usr" / "lib" / "modules" / version
    target.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / name, target)
    _run("/sbin/depmod", "-b", kernel, version)
    for module in MODULES:
        wanted = _run("/sbin/modprobe", "-d", kernel, "-S", version, "--show-depends", module)
        for line in wanted.splitlines():
            if line.startswith("insmod "):
                path = Path(line.split()[1])
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
    _run("/sbin/depmod", "-b", root, version)
    return version


# ---- dom0


def _unpack_dom0(root: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for deb in sorted((CACHE / "debs").glob("*.deb")):
        if not deb.name.startswith(NOT_UNPACKED):
            _untar(deb, "-x", "--keep-directory-symlink", "-C", str(root))
    hypervisor = next((CACHE / "debs").glob("xen-hypervisor-4.17-amd64_*.deb"))
    XEN.write_bytes(_untar(hypervisor, "-xO", "--wildcards", "./boot/xen-*-amd64.gz", unzip=True))
    for pattern in NOT_NEEDED:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _untar(deb: Path, *options: str, unzip: bool = False) -> bytes:
    command = f'dpkg-deb --fsys-tarfile "$0" | tar "$@" {"| gzip -dc" if unzip else ""}'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command, deb, *options], capture_output=True, check=False)
    if done.returncode:
        raise ImageError(f"{deb.name} cannot be unpacked: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout


def _finish_dom0(root: Path) -> None:
    for name in DOM0_FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "var" / "run").symlink_to("/run")
    for applet in _run(root / "usr" / "bin" / "busybox", "--list").split():
        if not any((root / "usr" / folder / applet).exists() for folder in ("bin", "sbin")):
            (root / "usr" / "bin" / applet).symlink_to("/bin/busybox")
    _compile_python(root)
    _copy_program(FILES / "dom0-init", root / "init")
    _copy_program(FILES / "block-script", root / "etc" / "xen" / "scripts" / "block-test")
    _copy_program(FILES / "network-script", root / "etc" / "xen" / "scripts" / "vif-test")
    _copy_program(FILES / "local-transport", root / "usr" / "bin" / "local-transport")
    shutil.copy(FILES / "load.py", root / "guest")
    shutil.copy(KERNEL, root / "guest")
    _pack(CACHE / "guest", root / "guest" / "guest.cpio")
    _pack(root, DOM0)


def _compile_python(root: Path) -> None:
    """Compiles the standard library with the image's own Python: doing it emulated would take half of a test's time."""
    usr = root / "usr"
    python: list[str | Path] = [
        usr / "lib64" / "ld-linux-x86-64.so.2",
        "--library-path",
        usr / "lib" / "x86_64-linux-gnu",
        usr / "bin" / "python3",
    ]
    library = next(usr.glob("lib/python3.[0-9]*"))
    options = ["-q", "-j2", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    _run("env", f"PYTHONHOME={usr}", *python, "-S", "-m", "compileall", *options, library)


def _copy_program(source: Path, target: Path) -> None:
    shutil.copy(source, target)
    target.chmod(0o755)


def _pack(folder: Path, archive: Path) -> None:
    names = "\0".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    _run("cpio", "-0", "-o", "-H", "newc", "-R", "0:0", "--quiet", "-F", archive, cwd=folder, text=names)


# ---- the guest


def _make_guest(root: Path, version: str, guest: Path) -> None:
    for name in GUEST_FOLDERS:
        (guest / name).mkdir(parents=True)
    programs = {"busybox": "busybox", "xenstore": "xenstore", "python3": "python3.11"}
    for name, source in programs.items():
        _copy_program(root / "usr" / "bin" / source, guest / "bin" / name)
    for name in GUEST_BUSYBOX:
        (guest / "bin" / name).symlink_to("busybox")
    for name in GUEST_CLIENTS:
        (guest / "bin" / f"xenstore-{name}").symlink_to("xenstore")
    for name in GUEST_LIBRARIES:
        shutil.copy(next((root / "usr" / "lib").rglob(name)), guest / "lib" / "x86_64-linux-gnu" / name)
    shutil.copy(guest / "lib" / "x86_64-linux-gnu" / "ld-linux-x86-64.so.2", guest / "lib64")
    for name in GUEST_MODULES:
        shutil.copy(next((root / "usr" / "lib" / "modules" / version).rglob(f"{name}.ko")), guest / "mod")
    _copy_python(root / "usr" / "lib" / "python3.11", guest / "usr" / "lib" / "python3.11")
    _copy_program(FILES / "guest-init", guest / "init")
    _copy_program(FILES / "guest-poweroff", guest / "sbin" / "poweroff")
    shutil.copy(FILES / "load.py", guest)


def _copy_python(source: Path, target: Path) -> None:
    for name in GUEST_PYTHON:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{name}.py", target / f"{name}.py")
    (target / "lib-dynload").mkdir()
    shutil.copy(next((source / "lib-dynload").glob("mmap.*.so")), target / "lib-dynload")


def main() -> int:
    """The command."""
    try:
        build()
    except ImageError as e:
        print(f"the machine cannot be made: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
