"""Where a key stands in a file, for what is found wrong with it after it was read."""

import re

import yaml

from lb.config.document import compose
from lb.config.errors import ConfigError, ErrorLog

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def line_of(text: str, path: str) -> int:
    """The line of a path such as `pools[1].backends`, or of the nearest that is there; counts from 1."""
    node = compose(text, ErrorLog(""))
    line = 1
    for key, index in _PART.findall(path):
        if isinstance(node, yaml.MappingNode) and key:
            pairs = [(one, two) for one, two in node.value if one.value == key]
            if not pairs:
                break
            line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
        elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
            node = node.value[int(index)]
            line = node.start_mark.line + 1
        else:
            break
    return line


def error_at(text: str, source: str, path: str, problem: str, remedy: str) -> ConfigError:
    """A mistake at a path, with its line."""
    return ConfigError(source, line_of(text, path), path, problem, remedy)
