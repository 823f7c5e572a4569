"""``python -m lb`` is ``sockmap-lb``."""

import sys

from lb.cli import main

if __name__ == "__main__":
    sys.exit(main())
