"""The reference as Markdown: a table for each mapping."""

import re
from collections.abc import Iterator

from lb.config.forms import Form, Kind
from lb.config.reference.describe import COMMAND, EXAMPLE, Described, Reference
from lb.config.reference.meanings import LIKE
from lb.config.reference.trace import Place
from lb.config.value import either

_HEAD = f"""\
<!-- Written by `{COMMAND}`: change the readers in lb/config, or lb/config/reference/meanings.py. -->

# Configuration

A YAML file; [every-key.yaml](../{EXAMPLE}) shows all keys at work, and most files need
[a few lines](../deploy/examples/rpc.yaml). `sockmap-lb check FILE` says what is wrong with one, each error
with its line and a remedy; what is not in this reference is refused.

* A **duration** is a whole number with a unit: `250ms`, `2s`, `10m`, `1h`. A **size** is bytes, or `64KiB`,
  `1MiB`, `1GiB`. A **percent** is `50` or `50%`. An **integer** is decimal or hexadecimal: `16`, `0x10`.
* An **address** is `10.0.0.11:9000`, or in quotes `"[2001:db8::1]:9000"`.
* A **name** has 1 to 63 letters, digits, `_`, `.` and `-`, with no `-` in front.
* `none`, where it is listed, switches off.

Editors with a YAML language server complete and check keys with the
[JSON Schema](../deploy/sockmap-lb.schema.json); name it in the first line of a file:

```yaml
# yaml-language-server: $schema=./sockmap-lb.schema.json
```
"""


def markdown(reference: Reference) -> str:
    """Return the whole document."""
    return "\n".join([_HEAD, *_sections(reference, ""), ""]).rstrip() + "\n"


def _sections(reference: Reference, path: str) -> Iterator[str]:
    keys = reference.keys(path)
    if path:
        yield f"## `{path}`\n"
        yield f"{reference.meaning(path)}\n"
    else:
        yield "## The file\n"
    yield from _table(reference, keys)
    for key in keys:
        below = _mapping(reference, key.path)
        if below is not None and not _told(key.path):
            yield ""
            yield from _sections(reference, below)


def _table(reference: Reference, keys: list[Described]) -> Iterator[str]:
    yield "| key | type | default | bounds | meaning |"
    yield "|---|---|---|---|---|"
    for key in keys:
        meaning = f"{key.meaning} *Bounds: {key.why}.*" if key.why else key.meaning
        cells = (f"`{key.name}`", _kind(reference, key), key.default or "its own", key.bounds, meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _kind(reference: Reference, key: Described) -> str:
    words = list(dict.fromkeys(_scalar(form) for form in key.place.forms))
    if key.place.none:
        words.append("`none`")
    below = _mapping(reference, key.path)
    if below is not None:
        where = LIKE.get(key.path, below)
        many = "mappings" if key.place.listed else "mapping"
        words.append(f"{'list of ' if key.place.listed else ''}[{many}](#{_anchor(where)})")
    elif key.place.listed:
        words.append(
            "list: " + either([_scalar(form) for form in reference.trace.places[f"{key.path}[]"].forms])
        )
    return either(words)


def _scalar(form: Form) -> str:
    if form.choices:
        return either([f"`{choice}`" for choice in form.choices])
    return form.wanted if form.kind is Kind.TEXT else form.kind.value


def _mapping(reference: Reference, path: str) -> str | None:
    """The path of the mapping that stands at a key, in its list or under its names; None: none."""
    places = reference.trace.places
    found = (below for below in (path, f"{path}[]", f"{path}.NAME") if places.get(below, Place()).keys)
    return next(found, None)


def _told(path: str) -> bool:
    """Whether another section has all that there is to say."""
    return path in LIKE


def _anchor(path: str) -> str:
    """As GitHub makes them of headings."""
    return re.sub(r"[^a-z0-9_ -]", "", path.lower())
