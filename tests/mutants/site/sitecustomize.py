"""Python runs this when it starts with this folder on its path: see `tests.mutants.patch`."""

import os

if os.environ.get("XOARSTORE_MUTATION"):
    from tests.mutants.patch import install

    install(os.environ["XOARSTORE_MUTATION"])
