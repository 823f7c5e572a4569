"""YAML text to a tree of nodes that know their lines.

Aliases are not followed: a few lines of them can stand for gigabytes, and a value should have one line to
report. An alias stays in the tree as a scalar with the tag `ALIAS`, which no reader takes.
"""

import re
from typing import Any

import yaml

from lb.config.errors import ErrorLog

ALIAS = "!alias"
# A configuration needs six levels; the composer of PyYAML recurses.
_MAX_DEPTH = 32
_BARE_IPV6 = re.compile(r"""[:\s]\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]:""")


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        start = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode(ALIAS, event.anchor, start, start)
        if self._depth == _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {_MAX_DEPTH} levels", problem_mark=start)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def compose(text: str, log: ErrorLog) -> yaml.Node | None:
    """Return the root of a text with one YAML document; None if it has none, with the reason in `log`."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        log.add(line, "", f"contains the control character {error.character:#04x}", "remove it")
        return None
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        _add_syntax_error(error, text, log)
        return None
    except ValueError:
        # The scanner converts the digits of an escape or a version without a look at their range.
        log.add(
            loader.line + 1, "", "is not valid YAML: an escape is out of range", "write the character itself"
        )
        return None
    if root is None:
        log.add(1, "", "is empty", "declare `listeners` and `pools`")
    return root


def _add_syntax_error(error: yaml.MarkedYAMLError, text: str, log: ErrorLog) -> None:
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    problem = str(error.problem)
    if error.context and error.context_mark:
        problem = f"{error.context} (from line {error.context_mark.line + 1}), {problem}"
    remedy = "check the indentation, quotes and brackets here and on the line before"
    lines = text.splitlines()
    if "'\\t'" in problem:
        remedy = "indent with spaces"
    elif line < len(lines) and _BARE_IPV6.search(lines[line]):
        remedy = 'put an IPv6 address in quotes, such as "[::]:7000"'
    log.add(line + 1, "", f"is not valid YAML: {problem}", remedy)
