"""``python -m invocupy``: the command line."""

import sys

from invocupy.cli import main

sys.exit(main())
