"""What each key is for, one line each: `"path": "meaning"`.

Kind, bounds and default are the reader's. `Key` adds a default in words, where the reader's is `None` or
depends on other keys, and bounds in words, where they do.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """A meaning, and in words what the reader cannot say."""

    text: str
    default: str = ""
    bounds: str = ""


_WITHIN = "within the first 56 bytes of the message"
_SET = "at least one bit, none outside the field"

# fmt: off
MEANINGS: Mapping[str, str | Key] = {
    "admin": "The HTTP server for operators.",
    "admin.address": "Where `/metrics`, `/healthz`, `/readyz` and `/status` are served; `none`: nowhere.",
    "runtime": "The process.",
    "runtime.user": "Who serves once the programs are loaded; `none`: whoever started the process.",
    "runtime.max_connections": "Sockets in the sockmap, of clients and backends together.",
    "runtime.buffer_budget": "What may wait in the kernel for one socket before who sends to it is stopped.",
    "runtime.shutdown_delay": "After SIGTERM `/readyz` says 503, and for so long new clients are still served.",
    "protocols": Key("Framings of your own, by name; presets are in [PROTOCOLS.md](PROTOCOLS.md).", "presets only"),
    "protocols.NAME": "How long a message is, and what it says. Fields lie within the first 56 bytes.",
    "protocols.NAME.length": "The whole message has `(field & mask) + adjust` bytes.",
    "protocols.NAME.length.offset": Key("Where the field begins.", bounds=_WITHIN),
    "protocols.NAME.length.width": "Bytes of the field.",
    "protocols.NAME.length.endian": "Byte order of the field.",
    "protocols.NAME.length.mask": Key("The bits of the field that are the length.", "all", _SET),
    "protocols.NAME.length.adjust": "What the field does not count.",
    "protocols.NAME.id": Key("By what a response is known; needed for `connections: shared`.", "no id"),
    "protocols.NAME.id.offset": Key("Where the id begins; with `after`: behind the string.", "0 with `after`, else required", _WITHIN),
    "protocols.NAME.id.width": "Bytes of the id. Shared connections need 2, 4 or 8.",
    "protocols.NAME.id.endian": "Byte order of the id.",
    "protocols.NAME.id.response_offset": Key("Where a backend's messages have it.", "`offset`", _WITHIN),
    "protocols.NAME.id.after": Key("A field with the length of the string in front of the id, right behind it.", "no string"),
    "protocols.NAME.id.after.offset": Key("Where the field begins.", bounds=_WITHIN),
    "protocols.NAME.id.after.width": "Bytes of the field.",
    "protocols.NAME.id.after.endian": "Byte order of the field.",
    "protocols.NAME.response": Key("What marks a response: `(field & mask) == value`.", "what a backend sends"),
    "protocols.NAME.response.offset": Key("Where the field begins.", bounds=_WITHIN),
    "protocols.NAME.response.width": Key("Bytes of the field.", "1"),
    "protocols.NAME.response.endian": "Byte order of the field.",
    "protocols.NAME.response.mask": Key("The bits of the field that are compared.", "all", _SET),
    "protocols.NAME.response.value": Key("What they must be.", bounds="no bit outside the mask"),
    "protocols.NAME.no_response": Key("What marks a request that nobody answers.", "all are answered"),
    "protocols.NAME.no_response.value": Key("What they must be.", "required, unless `in`", "no bit outside the mask"),
    "protocols.NAME.no_response.in": Key("Instead of `value`: the values of one byte that mean so.", "`value`"),
    "protocols.NAME.magic": Key("What every message of this protocol has; others close their connection.", "any will do"),
    "protocols.NAME.max_message": Key("The longest message; a longer one closes its connection.", "1MiB", "from where the fields end to 64MiB"),
    "protocols.NAME.min_message": Key("The shortest message.", "where the fields end", "from there to `max_message`"),
    "protocols.NAME.ordering": Key("Order of responses: any, or that of the requests.", "`any` with an id, else `fifo`"),
    "protocols.NAME.responses": "To one request: one; many; any, and some to requests that are not answered.",
    "listeners": "Where clients connect.",
    "listeners[]": "An address, the framing of its messages, and who answers them.",
    "listeners[].name": "In metrics and logs; unique.",
    "listeners[].address": "Where to listen; port 0: the kernel chooses.",
    "listeners[].protocol": Key("A preset, or one of `protocols`.", "`length-prefixed`"),
    "listeners[].pool": Key("Which of `pools` answers.", "the only pool"),
    "listeners[].proxy_protocol": "Proxies in front say in a PROXY header, version 1 or 2, whose connection it is.",
    "listeners[].trusted": Key("From where proxies may connect.", "this machine"),
    "listeners[].rules": Key("Where messages go by what they say, or by who sends them; the first that matches counts.", "all go to `pool`"),
    "listeners[].rules[]": "What a message is like, and what becomes of it.",
    "listeners[].rules[].match": Key("All that must hold.", "every message"),
    "listeners[].rules[].match.dns-name": Key("A domain, or several: the name that a DNS query asks for is one, or below one.", "any name"),
    "listeners[].rules[].match.method": Key("What a Thrift message calls, or several of it.", "any method"),
    "listeners[].rules[].match.client": Key("Networks, one of which has the client's address.", "any client"),
    "listeners[].rules[].match.offset": Key("Where in the message a field begins.", "no field is looked at"),
    "listeners[].rules[].match.width": Key("Bytes of the field.", "required with `equals` and `in`", "1 to 8; with `prefix` 1 to 128"),
    "listeners[].rules[].match.mask": Key("The bits of the field that are compared.", "all", _SET),
    "listeners[].rules[].match.endian": "Byte order of the field.",
    "listeners[].rules[].match.equals": Key("What they must be.", "`in` or `prefix`", "no bit outside the mask"),
    "listeners[].rules[].match.in": Key("Several values, one of which they must be.", "`equals` or `prefix`", "no bit outside the mask"),
    "listeners[].rules[].match.prefix": Key("The first bytes of the field: text, or `0x` and hexadecimal digits.", "`equals` or `in`", "1 to 128 bytes"),
    "listeners[].rules[].then": "`deny`: the message is dropped, with an error where the protocol has one; else where it goes.",
    "listeners[].rules[].then.pool": Key("Which of `pools` answers.", "or `backend`"),
    "listeners[].rules[].then.backend": Key("One backend: `NAME` of the listener's pool, or `POOL/NAME`.", "or `pool`"),
    "listeners[].limits": Key("What clients may take; who is one too many is reset at once, and counted.", "none"),
    "listeners[].limits.max_clients": Key("Clients at once.", "no limit"),
    "listeners[].limits.max_clients_per_address": Key("Clients at once from one IP address.", "no limit"),
    "listeners[].limits.idle": Key("How long a client may send nothing.", "`timeouts.idle` of the pool"),
    "listeners[].limits.rate": Key("Messages of all clients together.", "no limit"),
    "listeners[].limits.rate.messages_per_second": "What comes in the long run.",
    "listeners[].limits.rate.burst": Key("What may come at once after a while of less.", "`messages_per_second`"),
    "listeners[].limits.rate.over": "More waits, or is denied: dropped, with an error where the protocol has one.",
    "listeners[].limits.rate_per_address": Key("Messages of the clients from one IP address.", "no limit"),
    "pools": "Who answers.",
    "pools[]": "Backends that answer the same requests.",
    "pools[].name": "In metrics, logs and commands; unique.",
    "pools[].backends": Key("The servers; not together with `accept`.", "required, unless `accept`"),
    "pools[].backends[]": "A server.",
    "pools[].backends[].name": "In metrics, logs and commands; unique in the pool.",
    "pools[].backends[].address": "Where it listens; with a host name, a server listens at each of its addresses.",
    "pools[].backends[].weight": "Its share, beside those of the others.",
    "pools[].backends[].max_outstanding": Key("Requests that wait for its responses; more wait here.", "no limit"),
    "pools[].backends[].priority": "Its level: those of the next one serve when too little of this one is up.",
    "pools[].balance": "Which backend a message goes to.",
    "pools[].hash": Key("What `balance: hash` goes by: a word, or where the key is in a message.", "required with `balance: hash`"),
    "pools[].hash.field": Key("The key is `width` bytes at `offset`.", "or `string`"),
    "pools[].hash.field.offset": "Where it begins.",
    "pools[].hash.field.width": "Its bytes.",
    "pools[].hash.string": Key("The key stands right behind its length.", "or `field`"),
    "pools[].hash.string.offset": "Where the length begins.",
    "pools[].hash.string.width": "Bytes of the length.",
    "pools[].hash.string.endian": "Byte order of the length.",
    "pools[].max_load": "A backend with more than this many times the mean outstanding is passed over; `none`: never.",
    "pools[].connections": "To backends: each client's own, or shared by all; these need an id and `ordering: any`.",
    "pools[].connections_per_backend": "Shared connections to each backend; of a pool at most 32.",
    "pools[].max_in_flight": "Requests without a response on a shared connection; more wait.",
    "pools[].batch": "Most messages of one client that travel together.",
    "pools[].health_check": Key("Try backends to connect.", "none: all are taken as up"),
    "pools[].health_check.interval": "From one try to the next.",
    "pools[].health_check.timeout": "How long one may take.",
    "pools[].health_check.rise": "Successes in a row that bring a backend up.",
    "pools[].health_check.fall": "Failures in a row that take it down.",
    "pools[].timeouts": "How long to wait for what.",
    "pools[].timeouts.connect": "A connection to a backend.",
    "pools[].timeouts.idle": "Clients that send nothing.",
    "pools[].timeouts.drain": "Requests under way, when the balancer or a backend is drained.",
    "pools[].timeouts.half_message": "The rest of a message that has begun.",
    "pools[].timeouts.unacknowledged": "A peer whose TCP acknowledges nothing.",
    "pools[].timeouts.queue": "A message that finds no backend.",
    "pools[].timeouts.response": "Shared connections: the response to a request.",
    "pools[].timeouts.slow_client": "Shared connections: a client that does not read while others wait.",
    "pools[].panic_threshold": "Of a level's weight that must be up, or the next level serves too.",
    "pools[].slow_start": Key("In which the share of a backend that comes back grows to its weight.", "at once"),
    "pools[].resolve": "How host names of backends are looked up; what the resolver cannot say changes nothing.",
    "pools[].resolve.interval": "From one look to the next, give or take a tenth.",
    "pools[].resolve.timeout": "How long one may take.",
    "pools[].resolve.family": "Which addresses count; `auto`: IPv4 ones, or IPv6 ones where there are none.",
    "pools[].resolve.max_addresses": "Of one name; the lowest ones are used.",
    "pools[].send_proxy": Key("Backends are told in a PROXY header whose connection it is.", "no header"),
    "pools[].accept": Key("Instead of `backends`: where workers connect; needs `connections: shared`.", "`backends`"),
    "pools[].allow": "From where workers may connect.",
    "pools[].max_workers": "Connections of workers.",
}
# fmt: on

# Mappings with the same keys as another one; what differs has lines of its own.
LIKE: Mapping[str, str] = {
    "protocols.NAME.no_response": "protocols.NAME.response",
    "protocols.NAME.magic": "protocols.NAME.response",
    "listeners[].limits.rate_per_address": "listeners[].limits.rate",
}
