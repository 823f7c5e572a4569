"""The reference as a JSON Schema (2020-12), for editors.

It is looser than the readers: what one key demands of another only `sockmap-lb check` knows. It is stricter
in one thing: a name is a string (the readers take `name: 7` as well).
"""

import json
from typing import TypeAlias

from lb.config.forms import Form, Kind
from lb.config.reference.describe import Described, Reference
from lb.config.reference.trace import Place

Schema: TypeAlias = dict[str, object]

_TYPES = {Kind.INTEGER: "integer", Kind.NUMBER: "number", Kind.FLAG: "boolean"}
_PATTERNS = {
    Kind.DURATION: r"^[0-9]{1,18}(ms|s|m|h)$",
    Kind.SIZE: r"^[0-9]{1,18}(KiB|MiB|GiB)?$",
    Kind.PERCENT: r"^[0-9]{1,9}%?$",
}


def schema(reference: Reference) -> str:
    """Return the schema as text."""
    head: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of sockmap-lb",
    }
    return json.dumps(head | _mapping(reference, ""), indent=1, ensure_ascii=False) + "\n"


def _mapping(reference: Reference, path: str) -> Schema:
    keys = reference.keys(path)
    found: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key.name: _key(reference, key) for key in keys},
    }
    required = [key.name for key in keys if key.required]
    return found | {"required": required} if required else found


def _key(reference: Reference, key: Described) -> Schema:
    told = [key.meaning]
    if key.bounds:
        told.append(f"Bounds: {key.bounds} ({key.why})." if key.why else f"Bounds: {key.bounds}.")
    if key.default:
        told.append(f"Default: {key.default}.")
    text = "\n\n".join(told)
    return {"description": text} | _place(reference, key.path, key.place, fixed=bool(key.why))


def _place(reference: Reference, path: str, place: Place, *, fixed: bool) -> Schema:
    found = [_scalar(form, fixed=fixed) for form in place.forms]
    places = reference.trace.places
    if place.none:
        found.append({"const": "none"})
    if place.keys:
        found.append(_mapping(reference, path))
    if place.listed:
        items = _place(reference, f"{path}[]", places[f"{path}[]"], fixed=fixed)
        found.append({"type": "array", "items": items, "minItems": 1})
    if place.named:
        items = _place(reference, f"{path}.NAME", places[f"{path}.NAME"], fixed=fixed)
        found.append({"type": "object", "additionalProperties": items})
    unique = [schema for i, schema in enumerate(found) if schema not in found[:i]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def _scalar(form: Form, *, fixed: bool) -> Schema:
    if form.choices:
        return {"enum": [int(word) if form.kind is Kind.INTEGER else word for word in form.choices]}
    if form.kind in _TYPES:
        return {"type": _TYPES[form.kind]} | (_limits(form) if fixed else {})
    if form.kind is Kind.HEX:
        return {"type": ["string", "integer"], "pattern": r"^([0-9A-Fa-f]{2} *)+$"}
    if form.kind in _PATTERNS:
        # YAML takes what has no unit for a number, to which a pattern does not apply.
        kinds = "string" if form.kind is Kind.DURATION else ["string", "integer"]
        return {"type": kinds, "pattern": _PATTERNS[form.kind]}
    return {"type": "string"} if form.pattern is None else {"type": "string", "pattern": f"^{form.pattern}$"}


def _limits(form: Form) -> Schema:
    if form.range is None:
        return {}
    number = int if form.kind is Kind.INTEGER else float
    return {"minimum": number(form.range.low), "maximum": number(form.range.high)}
