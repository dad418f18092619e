"""Where the daemon is: a Unix socket on its own host, a device of the kernel in any other domain.

Looks at the environment and at which files exist; opens nothing.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final

from protocol.client.failures import StoreUnavailable

DEFAULT_SOCKET: Final = "/var/run/xenstored/socket"
DEVICES: Final = ("/dev/xen/xenbus", "/proc/xen/xenbus")


def find_store(environ: Mapping[str, str] = os.environ, exists: Callable[[str], bool] = os.path.exists) -> str:
    """The path to connect to: a socket, or a xenbus device.

    `$XENSTORED_PATH` wins, then `socket` below `$XENSTORED_RUNDIR`; either is taken as it is, so that a client that
    was pointed to one daemon never ends up at another.  Without them it is the first that exists of
    `/var/run/xenstored/socket`, `/dev/xen/xenbus` and `/proc/xen/xenbus`.  Empty variables count as unset.

    Raises StoreUnavailable, naming the places, when none exists.
    """
    if path := environ.get("XENSTORED_PATH"):
        return path
    if run_dir := environ.get("XENSTORED_RUNDIR"):
        return f"{run_dir.rstrip('/')}/socket"
    for path in (DEFAULT_SOCKET, *DEVICES):
        if exists(path):
            return path
    raise StoreUnavailable(
        f"no XenStore here: none of {DEFAULT_SOCKET}, {', '.join(DEVICES)} exists; XENSTORED_PATH can name one"
    )
