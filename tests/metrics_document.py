"""What docs/METRICS.md says there is."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PATH = Path(__file__).parents[1] / "docs" / "METRICS.md"
_ROW = re.compile(r"^\| `([a-z_]+)` \| (.*) \|$", re.MULTILINE)
_WORD = re.compile(r"`([a-z_]+)`")
_REASONS = re.compile(r"^## `([a-z_]+)\{[^}]*reason\}`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric without its prefix: type and labels."""

    name: str
    kind: str
    labels: frozenset[str]


def families() -> list[Family]:
    """All metrics of the document."""
    table = PATH.read_text(encoding="utf-8").partition("\n## All of them\n")[2].partition("\n## ")[0]
    found = []
    for name, rest in _ROW.findall(table):
        kind, labels, *_ = rest.split("|")
        found.append(Family(name, kind.strip(), frozenset(_WORD.findall(labels))))
    return found


def labels() -> dict[str, set[str]]:
    """Of each series of a scrape, also those that a histogram is made of."""
    found = {}
    for family in families():
        if family.kind == "histogram":
            found[f"{family.name}_bucket"] = {*family.labels, "le"}
            found[f"{family.name}_sum"] = found[f"{family.name}_count"] = set(family.labels)
        else:
            found[family.name] = set(family.labels)
    return found


def has_reason(name: str, reason: str) -> bool:
    """Whether a metric may have this reason."""
    if name.startswith("backend_") and re.fullmatch(r"e[a-z0-9]+", reason):
        return True  # the name of an errno
    return reason in reasons().get(name, ())


@cache
def reasons() -> dict[str, set[str]]:
    """The values of the label `reason`, by metric."""
    found = {}
    for name, section in _REASONS.findall(PATH.read_text(encoding="utf-8")):
        cells = [cell.strip() for line in section.splitlines() for cell in line.split("|")]
        found[name] = {match[1] for cell in cells if (match := _WORD.fullmatch(cell))}
    return found
