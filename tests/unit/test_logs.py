"""What a line of the log looks like, for whom."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import logging
from lb import logs
logs.setup({style!r})
log = logging.getLogger("lb.test")
log.info("one")
log.warning("two")
try:
    raise ValueError("three")
except ValueError:
    log.exception("failed")
"""


def lines(path: Path, style: str, *, journal: bool = False) -> list[str]:
    """What a program of its own logs to a file, which may be said to be journald's."""
    with path.open("w", encoding="utf-8") as stderr:
        status = os.fstat(stderr.fileno())
        inode = status.st_ino if journal else status.st_ino + 1
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(style=style)],
            cwd=ROOT,
            env=os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{inode}"},
            stderr=stderr,
            timeout=30,
            check=True,
        )
    return path.read_text(encoding="utf-8").splitlines()


def test_for_people(tmp_path: Path) -> None:
    """Also where somebody has sent the output of a service elsewhere."""
    logged = lines(tmp_path / "log", "text")
    assert [line.split(" ", 1)[1] for line in logged[:3]] == ["INFO one", "WARNING two", "ERROR failed"]
    assert logged[-1] == "ValueError: three"


def test_for_the_journal(tmp_path: Path) -> None:
    """Each line of a traceback has its level."""
    logged = lines(tmp_path / "log", "text", journal=True)
    assert logged[:3] == ["<6>one", "<4>two", "<3>failed"]
    assert all(line.startswith("<3>") for line in logged[3:])
    assert logged[-1] == "<3>ValueError: three"


def test_for_machines(tmp_path: Path) -> None:
    """As asked, in the journal too."""
    logged = [json.loads(line) for line in lines(tmp_path / "log", "json", journal=True)]
    assert [(entry["level"], entry["message"]) for entry in logged] == [
        ("info", "one"),
        ("warning", "two"),
        ("error", "failed"),
    ]
    assert logged[-1]["traceback"].endswith("ValueError: three\n")
