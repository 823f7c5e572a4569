"""Podman with a store of its own in memory, and the image that deploy/Dockerfile builds.

There is no registry to ask for a base image: debootstrap makes one, as Docker's Debian images are made. Its
archive is kept in ``~/.cache/sockmap-lb``; the image itself is built anew in each run.
"""

import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from tests.e2e.processes import ROOT, Process

CAPABILITIES = ("BPF", "NET_ADMIN", "PERFMON")  # to load the programs
CHANGE_USER = ("SETUID", "SETGID", "SETPCAP")  # to become runtime.user
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SECCOMP = ROOT / "deploy" / "seccomp.json"

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sockmap-lb" / "images"
_SUITE = "bookworm"
_BASE = f"localhost/debian:{_SUITE}"
# What hard limits of the machine allow: podman asks for more by default.
LIMITS = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=10000:10000")
_DRIVER = "overlay" if "\toverlay\n" in Path("/proc/filesystems").read_text(encoding="ascii") else "vfs"
_BUILD_LIMIT = 600.0  # seconds, on a busy machine with slow mirrors
# Wheels for the image's Python, whatever runs the tests.
_PLATFORMS = (f"manylinux_2_28_{platform.machine()}", f"manylinux2014_{platform.machine()}")
_TARGET = ("--python-version=3.11", *(f"--platform={name}" for name in _PLATFORMS))
_PLACES = ("root", "runroot", "tmpdir", "network-config-dir")
_numbers = itertools.count()


class Podman:
    """Images and containers that no other podman of the machine sees, gone when it is closed."""

    image = "localhost/sockmap-lb"

    def __init__(self) -> None:
        self._folder = Path(mkdtemp(prefix="podman-", dir="/run"))  # short: the paths of sockets go below
        _do("mount", "-t", "tmpfs", "-o", "mode=700", "sockmap-lb-test", str(self._folder))

    def command(self, *arguments: str) -> list[str]:
        """The command line of a podman that needs no systemd."""
        places = (f"--{option}={self._folder}/{option}" for option in _PLACES)
        return [
            shutil.which("podman") or "podman",  # not the one of program()
            *places,
            f"--storage-driver={_DRIVER}",
            "--cgroup-manager=cgroupfs",
            "--runtime=runc",
            *arguments,
        ]

    def program(self) -> Path:
        """A folder with a `podman` that is this one, for programs that call it."""
        path = self._folder / "bin" / "podman"
        if not path.exists():
            path.parent.mkdir()
            path.write_text(f'#!/bin/sh\nexec {shlex.join(self.command())} "$@"\n', encoding="ascii")
            path.chmod(0o755)
        return path.parent

    def do(self, *arguments: str, limit: float = _BUILD_LIMIT) -> str:
        """Run podman; return what it prints."""
        return _do(*self.command(*arguments), limit=limit)

    def build(self) -> None:
        """Build the image as its first lines say, with the machine's own pip fetching the wheels."""
        self._import_base()
        with TemporaryDirectory() as wheels:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
            needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
            pip = (
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                f"--dest={wheels}",
                "--only-binary=:all:",
            )
            _do(*pip, *_TARGET, *needed)
            build = ("build", "--format=docker", "--layers=false", "--network=host", *LIMITS)
            sources = (
                f"--volume={wheels}:/wheels:ro",
                "--build-arg=PIP_NO_INDEX=1",
                "--build-arg=PIP_FIND_LINKS=/wheels",
            )
            self.do(
                *build,
                *sources,
                f"--build-arg=BASE_IMAGE={_BASE}",
                f"--file={DOCKERFILE}",
                f"--tag={self.image}",
                str(ROOT),
            )

    def _import_base(self) -> None:
        _CACHE.mkdir(parents=True, exist_ok=True)
        archive = _CACHE / f"{_SUITE}.tar"
        if not archive.exists():
            root, new = self._folder / _SUITE, archive.with_suffix(f".{os.getpid()}")
            _do("debootstrap", "--variant=minbase", _SUITE, str(root))
            left_out = ("--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*")
            _do("tar", "-C", str(root), *left_out, "-cf", str(new), ".")
            new.rename(archive)
            shutil.rmtree(root)
        self.do("import", str(archive), _BASE)

    def close(self) -> None:
        """Leave nothing behind; the containers have ended."""
        _do("umount", "--recursive", "--lazy", str(self._folder))
        self._folder.rmdir()


class Container:
    """How one container is to be run."""

    def __init__(
        self, podman: Podman, network: str, *options: str, capabilities: Sequence[str] = CAPABILITIES
    ) -> None:
        self._podman = podman
        self.name = f"test-{next(_numbers)}"
        self._options = [
            "--rm",
            f"--name={self.name}",
            f"--network=ns:/run/netns/{network}",
            *LIMITS,
            "--read-only",
            "--read-only-tmpfs=false",
            "--cap-drop=ALL",
            *(f"--cap-add={capability}" for capability in capabilities),
            f"--security-opt=seccomp={SECCOMP}",
            *options,
        ]

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs the image's program with these arguments, or with its own."""
        return self._podman.command("run", *self._options, self._podman.image, *arguments)

    def launch(self, configuration: Path) -> Process:
        """Run it as the image says, with this configuration where the image expects it."""
        self._options += [f"--volume={configuration}:/etc/sockmap-lb/config.yaml:ro"]
        return Process(self.command())

    def execute(self, *arguments: str) -> str:
        """Run a program inside, beside the first one."""
        return self._podman.do("exec", self.name, *arguments)

    def status(self) -> dict[str, str]:
        """What /proc says of the first process."""
        text = self.execute("cat", "/proc/1/status")
        return dict(line.split(":\t", 1) for line in text.splitlines())


def _do(*arguments: str, limit: float = _BUILD_LIMIT) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done.stdout
