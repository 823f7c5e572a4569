"""The key `rules` of a listener."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from lb.config.forms import Form, Kind
from lb.config.model import Config, Connections, Pool
from lb.config.scalars import choice, integer, read_network
from lb.config.value import Reader, Section, Value, either, scalar, show, suggest
from lb.framing import Endian, ErrorReply, Framing, Responses
from lb.rules import (
    MAX_OFFSET,
    MAX_PREFIX,
    MAX_RULES,
    MAX_WIDTH,
    Action,
    Bytes,
    Client,
    Deny,
    Rule,
    Suffix,
    Target,
    Test,
    method,
    number,
    prefix,
)

MAX_TESTS = 1024  # lb_abi.h; a unit test compares
MOST_BACKENDS = 32  # of all pools that a client may reach: its connections
_FIELD = ("offset", "width", "mask", "endian", "equals", "in", "prefix")
_OUTCOMES = ("equals", "in", "prefix")
_LONGEST_NAME, _LONGEST_LABEL = 253, 63
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_HEX = re.compile(r"0x((?:[0-9A-Fa-f]{2})+)")
_MATCH = "{dns-name: example.com}, {method: NAME}, {client: 10.0.0.0/8} or {offset: 4, width: 2, equals: 5}"
_THEN = "deny, {pool: NAME} or {backend: NAME}"

_read_offset = integer(0, MAX_OFFSET, "the parser waits for all bytes in front of those that it looks at")
_read_width = integer(1, MAX_WIDTH, "the bytes of an integer")
_read_integer = integer(0, (1 << 64) - 1, "integers have no more than 8 bytes")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules of a listener may refer to; None: mistakes elsewhere leave it unknown."""

    framing: Framing
    pool: str | None
    pools: Mapping[str, Pool]  # those without mistakes
    names: frozenset[str] | None  # of all pools


def read_rules(around: Surroundings) -> Reader[tuple[Rule, ...]]:
    """Return a reader of the rules of a listener."""

    def read(value: Value) -> tuple[Rule, ...] | None:
        items = value.items("a list of rules such as [{match: {client: 10.0.0.0/8}, then: deny}]")
        if len(items) > MAX_RULES:
            value.fail(
                f"has {len(items)} rules (each takes time for each message, {MAX_RULES} fit)", "remove some"
            )
        found = [rule for item in items if (rule := _Rule(around, item).read()) is not None]
        if len(found) < len(items):
            return None
        tests = sum(_tests_of(rule) for rule in found) + 1
        if tests > MAX_TESTS:
            problem = f"makes {tests} comparisons (each takes time for each message, {MAX_TESTS} fit)"
            value.fail(problem, "use fewer values, shorter ones, or fewer rules")
        _check_reach(value, around, found)
        return tuple(found)

    return read


def _tests_of(rule: Rule) -> int:
    """How many comparisons of 8 bytes a rule is made of: lb/dataplane/rules.py."""
    return sum(_parts(test) for tests in rule.conditions for test in tests) or 1


def _parts(test: Test) -> int:
    if isinstance(test, Bytes):
        return -(-len(test.mask) // 8)
    if isinstance(test, Suffix):
        return -(-len(test.labels) // 8) + 1
    return 2 + (test.network.prefixlen > 64)


def hints(config: Config) -> list[str]:
    """Return what is no mistake, but hardly meant: rules that no message reaches."""
    found = []
    for place, listener in enumerate(config.listeners):
        rules = listener.rules
        first = next((at for at, rule in enumerate(rules) if not rule.conditions), len(rules))
        if first + 1 < len(rules):
            path = f"listeners[{place}].rules[{first}]"
            found.append(f"{path}: matches every message; no rule behind it is ever reached")
    return found


class _Rule:
    """Reads one rule."""

    def __init__(self, around: Surroundings, value: Value) -> None:
        self._around = around
        self._value = value

    def read(self) -> Rule | None:
        section = self._value.section("match", "then")
        if section is None:
            return None
        conditions: tuple[tuple[Test, ...], ...] | None = ()
        if "match" in section.entries:
            conditions = self._read_match(section.entries["match"])
        action = section.required("then", self._read_then, "deny")
        if conditions is None or action is None:
            return None
        rule = Rule(conditions, action)
        self._check_order(rule)
        return rule

    def _check_order(self, rule: Rule) -> None:
        framing = self._around.framing
        if framing.responses is Responses.ANY and rule.by_message and isinstance(rule.action, Target):
            self._value.fail(
                f"{show(framing.name)} is `responses: any`, and nobody knows when a message for another"
                " backend may follow, but this rule sends messages there by what they say",
                "match `client` only, or use `then: deny`",
            )

    # What matches

    def _read_match(self, value: Value) -> tuple[tuple[Test, ...], ...] | None:
        section = value.section("dns-name", "method", "client", *_FIELD)
        if section is None:
            return None
        before = len(value.log)
        conditions: list[tuple[Test, ...] | None] = []
        if "client" in section.entries:
            conditions.append(_each(section.entries["client"], _read_client, "a network such as 10.0.0.0/8"))
        if any(key in section.entries for key in _FIELD):
            conditions.append(self._read_field(section))
        if "method" in section.entries:
            conditions.append(self._read_method(section.entries["method"]))
        if "dns-name" in section.entries:
            conditions.append(self._read_dns_name(section.entries["dns-name"]))
        if len(value.log) > before:
            return None
        if not section.entries:
            value.fail("is empty", f"write {_MATCH}, or remove it to match every message")
            return None
        return tuple(condition for condition in conditions if condition)

    def _read_dns_name(self, value: Value) -> tuple[Test, ...] | None:
        framing = self._around.framing
        if framing.error_reply is not ErrorReply.DNS:
            value.fail(f"{show(framing.name)} has no DNS names", "use `protocol: dns`")
            return None
        return _each(value, _read_suffix, "a domain such as example.com")

    def _read_method(self, value: Value) -> tuple[Test, ...] | None:
        framing = self._around.framing
        if framing.id_after is None:
            problem = f"{show(framing.name)} has no counted string in front of its id, which a method is"
            value.fail(problem, "use `protocol: thrift-framed`, or match `offset`")
            return None

        def read(item: Value) -> Test | None:
            text = item.text("the name of a method")
            if text is None:
                return None
            name = text.encode()
            if not 1 <= len(name) <= MAX_PREFIX:
                item.fail(f"{show(text)} has {len(name)} bytes, not 1 to {MAX_PREFIX}", "match a `prefix`")
                return None
            return method(framing, name)

        return _each(value, read, "the name of a method")

    def _read_field(self, section: Section) -> tuple[Test, ...] | None:
        offset = section.required("offset", _read_offset, "4")
        given = [key for key in _OUTCOMES if key in section.entries]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "does not say what the field has to be"
            section.value.fail(what, f"write one of {either(_OUTCOMES)}")
            return None
        read = self._read_prefix if given == ["prefix"] else _read_number
        found = read(section, offset or 0)
        if offset is None or found is None:
            return None
        end = max(test.end for test in found)
        if end > self._around.framing.max_message:
            framing = self._around.framing
            section.entries["offset"].fail(
                f"the field ends at {end}, but no message of {show(framing.name)} is longer than"
                f" {framing.max_message} bytes",
                "use another offset",
            )
            return None
        return found

    def _read_prefix(self, section: Section, offset: int) -> tuple[Bytes, ...] | None:
        for key in ("mask", "endian"):
            if key in section.entries:
                section.entries[key].fail("is for integers", "use `equals` or `in`, or remove it")
        width = section.optional("width", integer(1, MAX_PREFIX, "the bytes of a prefix"), MAX_PREFIX)
        value = section.entries["prefix"]
        value.expect(Form(Kind.INTEGER))  # what YAML takes 0x0a0b for
        value.expect(Form(Kind.TEXT, wanted="bytes: text, or `0x` and two hexadecimal digits for each"))
        text = value.text("bytes, such as 0x0a0b or text")
        if text is None:
            return None
        match = _HEX.fullmatch(text)
        if match is None and text.startswith("0x"):
            value.fail(f"{show(text)} is no row of bytes", "write two hexadecimal digits for each")
            return None
        data = text.encode() if match is None else bytes.fromhex(match[1])
        if not 1 <= len(data) <= width:
            value.fail(f"has {len(data)} bytes, not 1 to {width}", "write fewer, or more than none")
            return None
        return (prefix(offset, data),)

    # What becomes of it

    def _read_then(self, value: Value) -> Action | None:
        if isinstance(value.node, yaml.ScalarNode):
            return _read_word(value)
        section = value.section("pool", "backend")
        if section is None:
            return None
        if len(section.entries) != 1:
            value.fail(f"names {len(section.entries)} places", f"write {_THEN}")
            return None
        if "pool" in section.entries:
            return self._target(section.entries["pool"])
        return self._backend(section.entries["backend"]) if "backend" in section.entries else None

    def _target(self, value: Value) -> Target | None:
        name = value.text("the name of a pool")
        return None if name is None or not self._known(value, name) else Target(name)

    def _known(self, value: Value, pool: str) -> bool:
        names = self._around.names
        if names is not None and pool not in names:
            value.fail(f"unknown pool {show(pool)}", suggest(pool, names, "pools"))
            return False
        return True

    def _backend(self, value: Value) -> Target | None:
        text = value.text("the name of a backend")
        if text is None:
            return None
        pool, _, name = text.rpartition("/")
        if pool and not self._known(value, pool):
            return None
        pool = pool or self._around.pool or ""
        entry = self._around.pools.get(pool)
        # One that is not there is a mistake that is reported where it is.
        return Target(pool, name) if entry is None or _has(value, entry, name) else None


def _has(value: Value, pool: Pool, name: str) -> bool:
    """Whether one backend of a pool has a name; notes why not."""
    if pool.workers is not None:
        value.fail(f"pool {pool.name} accepts workers, which have no names here", "use {pool: ...}")
    elif any(name == host.name for host in pool.names):
        value.fail(
            f"{show(name)} of pool {pool.name} is a server at each address of a name", "use {pool: ...}"
        )
    elif name not in (known := {backend.name for backend in pool.backends}):
        value.fail(f"pool {pool.name} has no backend {show(name)}", suggest(name, known, "backends"))
    else:
        return True
    return False


@scalar(Form(Kind.WORD, choices=("deny",)))
def _read_word(value: Value) -> Action | None:
    text = value.text(_THEN)
    if text == "deny":
        return Deny()
    if text is not None:
        value.fail(f"{show(text)} is nothing to do with a message", f"write {_THEN}")
    return None


def _each(value: Value, read: Callable[[Value], Test | None], wanted: str) -> tuple[Test, ...] | None:
    """Read one thing, or a list of them of which one has to match."""
    items = value.items(f"{wanted}, or a list") if isinstance(value.node, yaml.SequenceNode) else [value]
    found = [test for item in items if (test := read(item)) is not None]
    return tuple(found) if len(found) == len(items) else None


def _read_client(value: Value) -> Test | None:
    network = read_network(value)
    return None if network is None else Client(network)


def _read_suffix(value: Value) -> Test | None:
    text = value.text("a domain such as example.com")
    if text is None:
        return None
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > _LONGEST_NAME or not all(
        len(label) <= _LONGEST_LABEL and _LABEL.fullmatch(label) for label in labels
    ):
        value.fail(
            f"{show(text)} is no domain", "write one such as example.com; names in other scripts as xn--..."
        )
        return None
    return Suffix(b"".join(bytes([len(label)]) + label.encode() for label in labels))


def _read_number(section: Section, offset: int) -> tuple[Bytes, ...] | None:
    width = section.required("width", _read_width, "4")
    endian = section.optional("endian", choice(Endian), Endian.BIG)
    if width is None:
        return None
    ones = (1 << 8 * width) - 1
    mask = section.optional("mask", integer(1, ones, f"the bits of {width} bytes"), ones)
    if "equals" in section.entries:
        items = [section.entries["equals"]]
    else:
        items = section.entries["in"].items("a list of numbers such as [1, 2, 3]")
    found = []
    for item in items:
        value = _read_integer(item)
        if value is None:
            continue
        if value & ~mask:
            where = "the mask" if mask != ones else f"a field of {width} bytes"
            item.fail(
                f"{value:#x} has bits outside {where}, so it never matches", "use another value or mask"
            )
            continue
        found.append(number(offset, width, mask, value, endian))
    return tuple(found) if items and len(found) == len(items) else None


def _check_reach(value: Value, around: Surroundings, rules: Sequence[Rule]) -> None:
    """Note why a client cannot be connected to all pools that it may reach."""
    if around.pool is None:
        return
    names = [around.pool, *(rule.action.pool for rule in rules if isinstance(rule.action, Target))]
    pools = [around.pools[name] for name in dict.fromkeys(names) if name in around.pools]
    if not any(isinstance(rule.action, Target) for rule in rules) or not pools:
        return
    shared = [pool.connections is Connections.SHARED for pool in pools]
    if any(shared) and not all(shared):
        one, other = pools[shared.index(True)].name, pools[shared.index(False)].name
        value.fail(
            f"pool {one} shares connections and pool {other} does not, so a client cannot reach both",
            "use the same `connections` for all pools of a listener",
        )
    count = sum(len(pool.backends) + len(pool.names) * pool.resolve.max_addresses for pool in pools)
    if not any(shared) and count > MOST_BACKENDS:
        value.fail(
            f"reaches {count} backends (a client has at most {MOST_BACKENDS} connections, and must have one"
            " to each that a rule may name)",
            "use `connections: shared`, or fewer backends",
        )
