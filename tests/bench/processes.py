"""What the measured programs are run with: building them, ending them, and what they cost."""

import argparse
import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.errors import ProgramError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START_LIMIT = 30.0
STOP_LIMIT = 15.0
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
_BPF_FLAGS = ("-target", "bpf", "-mcpu=v3", "-g", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


def raise_descriptor_limit(needed: int) -> None:
    """Allows this process, and what it starts, the descriptors of that many connections.

    Raises:
        ProgramError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ProgramError(
            f"{needed} descriptors are needed, {hard} are allowed: take fewer clients or raise `ulimit -Hn`"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def compile_c(directory: Path, name: str) -> Path:
    """Builds ``name``.c of this folder.

    Raises:
        ProgramError: there is no gcc, or it refuses.
    """
    return _build(directory / name, f"{name}.c", "gcc", *_FLAGS)


def compile_bpf(directory: Path, name: str) -> Path:
    """Builds ``name``.bpf.c of this folder, with the headers of the balancer's programs.

    Raises:
        ProgramError: there is no clang, or it refuses.
    """
    headers = (f"-I/usr/include/{os.uname().machine}-linux-gnu", f"-I{ROOT / 'bpf'}")
    return _build(directory / f"{name}.bpf.o", f"{name}.bpf.c", "clang", "-c", *_BPF_FLAGS, *headers)


def _build(target: Path, source: str, *compiler: str) -> Path:
    try:
        subprocess.run((*compiler, "-o", target, HERE / source), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ProgramError(f"{source} was not built: {error}") from error
    return target


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends the process with the block, by SIGKILL if SIGTERM does not."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def number(least: int, most: int) -> Callable[[str], int]:
    """A type for argparse: an integer within bounds."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return value

    return read


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its workers so far, also in system calls. Source: proc(5)."""
    return sum(map(_cpu_seconds, _family(pid)))


def resident_bytes(pid: int) -> int:
    """Memory of a process and its workers that is in RAM. Source: proc(5), VmRSS."""
    return sum(map(_resident_bytes, _family(pid)))


def _family(pid: int) -> list[int]:
    """A process, and those that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *map(int, children.read_text().split())]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nVmRSS:")[2].split(maxsplit=1)[0]) * 1024
