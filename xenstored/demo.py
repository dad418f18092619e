"""`make run`: the daemon in the foreground with a socket of its own, no Xen and no root needed, and how to talk to it."""

import os
import sys
import tempfile


def main() -> None:
    """Prints what a newcomer types next, then becomes the daemon."""
    rundir = os.environ.get("XENSTORED_RUNDIR") or os.path.join(tempfile.gettempdir(), f"xoarstore-{os.getuid()}")
    os.makedirs(rundir, mode=0o700, exist_ok=True)
    if os.stat(rundir).st_uid != os.getuid():
        raise SystemExit(f"{rundir} belongs to somebody else; set XENSTORED_RUNDIR")
    socket = os.path.join(rundir, "socket")
    python = os.path.relpath(sys.executable)
    print(
        f"""The XenStore daemon serves {socket} until you press Ctrl-C.  In another terminal:

    export XENSTORED_PATH={socket}
    xenstore-write /hello world && xenstore-ls -fp       # Debian's clients (package xenstore-utils), or
    {python} -m protocol.client ls -p /        # the client of this project
    kill -9 $(cat {rundir}/logic.pid)           # nobody will notice
""",
        flush=True,
    )
    environment = {**os.environ, "XENSTORED_RUNDIR": rundir}
    environment.pop("XENSTORED_PATH", None)
    os.execve(sys.executable, [sys.executable, "-m", "xenstored", "-N", "-D"], environment)


if __name__ == "__main__":
    main()
