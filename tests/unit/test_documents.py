"""What documents refer to is there: files, headings, metrics, commands."""

import argparse
import re
from pathlib import Path

import pytest

from lb import cli
from tests import metrics_document
from tests.unit.snippets import ROOT, documents

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_METRIC = re.compile(r"\bsockmap_lb_([a-z_]*[a-z])\b")
_COMMAND = re.compile(r"(?:^|`)(?:\$ )?sockmap-lb ([a-z-]+)", re.MULTILINE)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = _HEADING.findall(_CODE.sub("", _text(path)))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", _text(path))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_metrics_are_real(path: Path) -> None:
    known = metrics_document.labels().keys() | {family.name for family in metrics_document.families()}

    assert set(_METRIC.findall(_text(path))) <= known


def test_commands_are_real() -> None:
    parser = cli._parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known = set(commands.choices)
    used = {(path.name, word) for path in documents() for word in _COMMAND.findall(_text(path))}

    assert {(name, word) for name, word in used if word not in known} == set()
