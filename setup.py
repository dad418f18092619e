"""What pyproject.toml cannot say: extensions that may be missing, for want of a compiler or because nobody asked for them.

`_lanes`, `_journal` and `_clone` are compiled wherever there is a compiler.  With XOARSTORE_COMPILED=1 the typed modules on
the way of a request are compiled too, by mypyc and as they stand: what they do is the same, in half the time
(`docs/decisions/007`).
"""

import os

from setuptools import Extension, setup

HOT = [
    *(f"protocol/{name}.py" for name in ("errors", "ops", "paths", "payload", "permissions", "wire", "ring")),
    *(
        f"recovery_box/{name}.py"
        for name in (
            "box",
            "custody",
            "items",
            "journal",
            "lanes",
            "ledger",
            "line",
            "prctl",
            "remnant",
            "ringlane",
            "sibling",
        )
    ),
    *(
        f"xenstore_state/{name}.py"
        for name in (
            "access",
            "domains",
            "effects",
            "nursery",
            "quotas",
            "records",
            "repetition",
            "restarts",
            "snapshots",
            "standby",
            "store",
            "transactions",
            "tree",
            "views",
            "watches",
            "worker",
        )
    ),
    *(
        f"xenstore_logic/{name}.py"
        for name in (
            "channels",
            "core",
            "gate",
            "host",
            "loop",
            "pinned",
            "process",
            "requests",
            "rings",
            "trace",
        )
    ),
]
"""Modules on the way of a request, or of a Logic that serves one only; whatever else there is runs rarely."""


def extensions() -> list[Extension]:
    """What is to be compiled."""
    helpers = [
        Extension(f"recovery_box.{name}", [f"recovery_box/{name}.c"], optional=True)
        for name in ("_lanes", "_journal", "_clone")
    ]
    if os.environ.get("XOARSTORE_COMPILED") != "1":
        return helpers
    from mypyc.build import mypycify  # noqa: PLC0415  # needed by nobody else

    return [*helpers, *mypycify(["--strict", *HOT], opt_level="2", debug_level="0")]


setup(ext_modules=extensions())
