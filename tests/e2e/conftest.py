"""The whole program on this machine's kernel: real processes, real sockets, networks of their own."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.e2e.containers import Podman
from tests.e2e.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A network namespace for the test alone."""
    need("ip")
    with ExitStack() as stack:
        # Not tmp_path, which is root's alone: a balancer reads its configuration again as nobody.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sockmap-lb-")))
        folder.chmod(0o755)
        yield Lab(folder, stack)


def need(*programs: str) -> None:
    """Skip the test without root, or where a program is not installed."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and BPF")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: run scripts/setup.sh test")


@pytest.fixture(name="need", scope="session")
def _need() -> Callable[..., None]:
    return need


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """The image of deploy/Dockerfile; the first test that wants it waits for it."""
    need("podman", "runc", "debootstrap")
    podman = Podman()
    try:
        podman.build()
        yield podman
    finally:
        podman.close()
