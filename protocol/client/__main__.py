"""`python -m protocol.client`: the command line."""

import sys

from protocol.client.cli import main

sys.exit(main())
