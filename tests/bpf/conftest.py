"""The compiler for BPF, the sample object that it makes, and the product's own programs in the kernel."""

import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from lb.dataplane import DataPlane, Sizes, load
from tests.bpf.rig import LARGEST, Rig

SAMPLE = Path(__file__).parent / "fixtures/sample.bpf.c"

Compiler = Callable[[Path, Path], Path]


def _compile(source: Path, target: Path) -> Path:
    # -I: asm/types.h is where the machine's own compiler looks for it, and that is not BPF's.
    flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", f"-I/usr/include/{platform.machine()}-linux-gnu"]
    subprocess.run(["clang", *flags, "-c", source, "-o", target], check=True, timeout=120)
    return target


@pytest.fixture(scope="session")
def compile_bpf() -> Compiler:
    """Compile a source to a target, which is returned. Needs clang."""
    return _compile


@pytest.fixture(scope="session")
def sample(compile_bpf: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The object made of fixtures/sample.bpf.c. Needs clang."""
    return compile_bpf(SAMPLE, tmp_path_factory.mktemp("bpf") / "sample.bpf.o")


@pytest.fixture
def plane() -> Iterator[DataPlane]:
    """The product's data plane, attached, with nothing published. Needs root."""
    sizes = Sizes(
        connections=128,
        framings=4,
        backends=40,
        traffic_rows=40,
        max_message=LARGEST,
        shared_routes=2,
        flights=256,
        rates=4,
        hashed_pools=4,
        rules=4,
        tests=4096,
    )
    with closing(load(sizes)) as plane:
        yield plane


@pytest.fixture
def rig(plane: DataPlane) -> Iterator[Rig]:
    """Connections around the product's data plane. Needs root."""
    with ExitStack() as stack:
        yield Rig(plane, stack)
