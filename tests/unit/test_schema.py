"""The JSON Schema takes what the readers take, and refuses what a reader can refuse by itself."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from lb.config import ConfigError, ConfigErrors, parse
from lb.config.reference.__main__ import SCHEMA
from tests.unit.snippets import ROOT, snippets

EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))
WHOLE = json.loads((ROOT / SCHEMA).read_text(encoding="utf-8"))
EVERY_KEY = ROOT / "deploy" / "examples" / "every-key.yaml"


def _problems(schema: Any, text: str) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(yaml.safe_load(text))]


def _without_required(schema: Any) -> Any:
    """The schema for a piece of a file."""
    if isinstance(schema, dict):
        return {key: _without_required(value) for key, value in schema.items() if key != "required"}
    return [_without_required(item) for item in schema] if isinstance(schema, list) else schema


FOR_PIECES = _without_required(WHOLE)


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(WHOLE)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_conform(path: Path) -> None:
    assert _problems(WHOLE, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_name_the_schema_for_editors(path: Path) -> None:
    first, _, _ = path.read_text(encoding="utf-8").partition("\n")

    assert first == "# yaml-language-server: $schema=../sockmap-lb.schema.json"


_ELSEWHERE = ("is missing", "unknown pool", "unknown protocol")


def _mistakes(text: str) -> list[ConfigError]:
    try:
        parse(text, "snippet")
    except ConfigErrors as errors:
        return list(errors.errors)
    return []


@pytest.mark.parametrize("text", [pytest.param(text, id=where) for where, text in snippets()])
def test_documents_show_what_the_readers_take(text: str) -> None:
    """A piece of a file may lack what a whole one needs, and name what it does not show."""
    if yaml.safe_load(text) is None:
        return  # comments
    mistakes = _mistakes(text)

    assert [str(error) for error in mistakes if not error.problem.startswith(_ELSEWHERE)] == []
    assert _problems(FOR_PIECES if mistakes else WHOLE, text) == []


def _mappings(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "acme" not in tree:  # the keys of `protocols` are names
            yield tree
        for value in tree.values():
            yield from _mappings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _mappings(value)


TREE = yaml.safe_load(EVERY_KEY.read_text(encoding="utf-8"))


def test_unknown_keys_are_refused_in_every_mapping() -> None:
    tree = copy.deepcopy(TREE)
    for mapping in _mappings(tree):
        mapping["no_such_key"] = 1
        assert not Draft202012Validator(WHOLE).is_valid(tree), mapping
        del mapping["no_such_key"]
    assert Draft202012Validator(WHOLE).is_valid(tree)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_connections: 65536", "max_connections: 15"),
        ("max_connections: 65536", "max_connections: many"),
        ("buffer_budget: 1MiB", "buffer_budget: 1 MiB"),
        ("idle: 10m", "idle: 10"),
        ("balance: hash", "balance: hashed"),
        ("address: 127.0.0.1:9901", "address: 127.0.0.1"),
        ("width: 4, endian: little", "width: 5, endian: little"),
        ("max_load: 1.25", "max_load: 101"),
        ("panic_threshold: 50%", "panic_threshold: half"),
        ("allow: [10.0.0.0/8]", "allow: 10.0.0.0/8"),
        ("name: acme\n    address: 0.0.0.0:7000", "name: acme"),
    ],
)
def test_wrong_values_are_refused(old: str, new: str) -> None:
    text = EVERY_KEY.read_text(encoding="utf-8")
    assert old in text

    assert _problems(WHOLE, text.replace(old, new, 1))


@pytest.mark.parametrize("name", ["max_load", "admin"])
def test_none_is_taken_where_it_means_something(name: str) -> None:
    old, new = {
        "max_load": ("max_load: 1.25", "max_load: none"),
        "admin": ("address: 127.0.0.1:9901", "address: none"),
    }[name]
    text = EVERY_KEY.read_text(encoding="utf-8").replace(old, new)

    assert _problems(WHOLE, text) == []
    parse(text, "file")
