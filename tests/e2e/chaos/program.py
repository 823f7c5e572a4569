"""What the programs of this folder share: a lab that is gone at the end, and lines that show at once."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from tests.e2e.lab import Lab

T = TypeVar("T")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_in_lab(work: Callable[[Lab], T]) -> T:
    """Do some work in a namespace of its own."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)  # a balancer reads its configuration again as nobody
        return work(Lab(Path(folder), stack))
