"""The reference of the configuration says what the readers do, and the schema what the reference says."""

import copy
import re
from collections.abc import Iterator
from itertools import groupby

import pytest
import yaml

from lb.config import Config
from lb.config.document import compose
from lb.config.errors import ErrorLog
from lb.config.parse import read_config
from lb.config.reference import describe
from lb.config.reference.__main__ import MARKDOWN, SCHEMA, written
from lb.config.reference.describe import COMMAND, EXAMPLE, Incomplete, Reference
from lb.config.reference.meanings import MEANINGS
from lb.config.reference.trace import trace
from lb.config.value import Value
from tests.unit.snippets import ROOT

TEXT = (ROOT / EXAMPLE).read_text(encoding="utf-8")
TREE = yaml.safe_load(TEXT)
TRACE = trace(TEXT, EXAMPLE)
_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


def _steps(path: str) -> list[str]:
    return [index or key for index, key in _STEP.findall(path)]


def _node(text: str) -> yaml.Node:
    node = compose(text, ErrorLog("file"))
    assert node is not None
    return node


def _edited(node: yaml.Node, steps: list[str], new: yaml.Node | None) -> yaml.Node:
    """A tree with another node at a path, or without what is there."""
    step, *rest = steps
    edited = copy.copy(node)
    if isinstance(node, yaml.SequenceNode):
        items = list(node.value)
        items[int(step)] = _edited(items[int(step)], rest, new) if rest else new
        edited.value = items
    else:
        entries = [
            (key, (_edited(value, rest, new) if rest else new) if key.value == step else value)
            for key, value in node.value
        ]
        edited.value = [(key, value) for key, value in entries if value is not None]
    return edited


ROOT_NODE = _node(TEXT)


def _outcome(path: str, text: str | None) -> Config | set[tuple[str, str]]:
    """What the example means, or what is wrong with it, with another text at a path or with nothing there."""
    new = None if text is None else _node(text)
    log = ErrorLog("file")
    config = read_config(Value.at(_edited(ROOT_NODE, _steps(path), new), "", log))
    errors = {(error.path, error.problem) for error in log.refusal().errors}
    if errors or config is None:
        return errors
    return config


def _problems(path: str, text: str | None) -> list[str]:
    """What is wrong there then."""
    found = _outcome(path, text)
    return [] if isinstance(found, Config) else [problem for at, problem in found if at == path]


def _around(path: str) -> str:
    return path.rpartition(".")[0]


# The scalars of the example by the mapping that they are in: a test for each of them would take minutes.
MAPPINGS = {path: list(group) for path, group in groupby(sorted(TRACE.scalars, key=_around), key=_around)}


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_bounds_are_the_last_values_that_are_taken(mapping: str) -> None:
    for path in MAPPINGS[mapping]:
        bounds = TRACE.scalars[path].range
        if bounds is None:
            continue
        for inside in (bounds.low, bounds.high):
            # What else of the file it makes wrong is another matter.
            assert not any("is outside" in problem for problem in _problems(path, inside)), path
        for outside in (bounds.below, bounds.above):
            assert _problems(path, outside), path


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_choices_are_all_that_is_taken(mapping: str) -> None:
    for path in MAPPINGS[mapping]:
        choices = TRACE.scalars[path].choices
        for choice in choices:
            problems = _problems(path, choice)
            assert not any("is not a choice" in text or "are no width" in text for text in problems), path
        assert not choices or _problems(path, "7"), path


def _pattern(path: str) -> str:
    return re.sub(r"^protocols\.[^.]+", "protocols.NAME", re.sub(r"\[\d+\]", "[]", path))


REFERENCE = Reference(TRACE)
DESCRIBED = {
    key.path: key for path, place in TRACE.places.items() if place.keys for key in REFERENCE.keys(path)
}
# What a file may have where nothing would mean the same.
DEFAULTS = {
    path: key.value
    for path in TRACE.scalars
    if (key := DESCRIBED.get(_pattern(path))) is not None and key.value is not None
}


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_default_means_the_same_as_nothing(mapping: str) -> None:
    for path in MAPPINGS[mapping]:
        if path in DEFAULTS:
            assert _outcome(path, DEFAULTS[path]) == _outcome(path, None), path


def _paths(tree: object, path: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            below = f"{path}.{key}" if path else key
            yield below
            yield from _paths(value, below)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _paths(value, f"{path}[{i}]")


def test_what_is_required_is_missed() -> None:
    required = [path for path in _paths(TREE) if (key := DESCRIBED.get(_pattern(path))) and key.required]

    assert required
    assert [path for path in required if _problems(path, None) != ["is missing"]] == []


@pytest.mark.parametrize("path", [MARKDOWN, SCHEMA])
def test_the_reference_is_fresh(path: str) -> None:
    try:
        text = written()[path]
    except Incomplete as incomplete:
        pytest.fail(f"a key is not in the reference:\n{incomplete}", pytrace=False)

    if (ROOT / path).read_text(encoding="utf-8") != text:
        pytest.fail(f"{path} is stale; run: {COMMAND}", pytrace=False)


def test_who_adds_a_key_is_told_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = dict(MEANINGS)
    del lines["pools[].batch"]
    lines["pools[].idle"] = lines["pools[].accept"] = "No such key; and one without a default."
    monkeypatch.setattr(describe, "MEANINGS", lines)
    reference = Reference(trace(TEXT.replace("    slow_start: 30s\n", ""), EXAMPLE))

    assert set(reference.lacks) == {
        f"pools[].slow_start: a reader knows it; show it in {EXAMPLE}",
        f'pools[].batch: has no meaning; add a line `"pools[].batch": "...",` to {describe.TABLE}',
        f"pools[].idle: no reader knows it; remove its line from {describe.TABLE}",
        f'pools[].accept: say in words what its default is; Key("...", default="...") in {describe.TABLE}',
    }
    with pytest.raises(Incomplete, match=f"then run: {COMMAND}"):
        reference.check()
