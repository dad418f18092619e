"""What pyproject.toml cannot say: extensions that may be missing, for want of a compiler or because nobody asked for them.

`_lanes`, `_journal` and `_clone` are compiled wherever there is a compiler.  With XOARSTORE_COMPILED=1 the typed modules of
State and Logic are compiled too, by mypyc and as they stand: what they do is the same, in half the time
(`docs/decisions/007`).
"""

import os
from pathlib import Path

from setuptools import Extension, setup

COLD = (
    "*/__init__.py",
    "recovery_box/fdstore.py",
    "xenstore_logic/control.py",
    "xenstore_logic/guest.py",
    "xenstore_logic/version.py",
    "xenstore_state/checkpoint.py",
    "xenstore_state/divergence.py",
    "xenstore_state/recovered.py",
)
"""Never needed in a hurry, and free to be lazy (mypyc makes a list of every generator expression at once) and to take signals."""
HOT = [
    str(path)
    for package in ("protocol", "recovery_box", "xenstore_state", "xenstore_logic")
    for path in sorted(Path(package).glob("*.py"))
    if not any(path.match(cold) for cold in COLD)
]
"""On the way of a request, of a new connection, or of a restart."""


def extensions() -> list[Extension]:
    """What is to be compiled."""
    helpers = [
        Extension(f"recovery_box.{name}", [f"recovery_box/{name}.c"], optional=True)
        for name in ("_lanes", "_journal", "_clone")
    ]
    if os.environ.get("XOARSTORE_COMPILED") != "1":
        return helpers
    from mypyc.build import mypycify  # noqa: PLC0415  # needed by nobody else

    modules = mypycify(["--strict", *HOT], opt_level="2", debug_level="0")
    header = str(Path("xenstore_state/_acyclic.h").resolve())
    for module in modules:
        if module.include_dirs:  # the code itself, beside a stub for each module
            module.extra_compile_args = [*module.extra_compile_args, "-include", header]
    return [*helpers, *modules]


setup(ext_modules=extensions())
