"""Hashed pools as the programs read them."""

from collections.abc import Sequence

from lb import abi
from lb.framing import Endian
from lb.libbpf import ArrayMap, Object
from lb.routing import Hash, KeyKind

_KEYS = {
    KeyKind.FIELD: abi.Key.FIELD,
    KeyKind.STRING: abi.Key.STRING,
    KeyKind.DNS_NAME: abi.Key.DNS_NAME,
    KeyKind.CLIENT_ADDRESS: abi.Key.CLIENT,
}


class Hashing:
    """Publishes what the messages of a pool are hashed by, and whose they are."""

    def __init__(self, loaded: Object) -> None:
        self._hashes = loaded.map("lb_hashes", ArrayMap)
        self._tables = loaded.map("lb_tables", ArrayMap)
        self._published = 0
        self._numbers: dict[int, int] = {}  # by pool: which table is its own
        self._members: dict[int, int] = {}  # by backend: which of its pool's it is

    def publish(self, pool: int, by: Hash, backends: Sequence[int], members: bytes) -> None:
        """Makes the table of a pool known to the programs, before a client of it is.

        Args:
            pool: its index.
            by: what is hashed, and how much load a backend takes.
            backends: indices of its backends, in the order in which they were published.
            members: whose each place is, as an index into `backends`: :func:`lb.maglev.table`.
        """
        if self._published >= self._tables.max_entries:
            raise RuntimeError(f"the maps were loaded for {self._tables.max_entries} hashed pools")
        table = abi.Table()
        table.backends[: len(backends)] = list(backends)
        table.members[: len(members)] = list(members)
        self._members.update((backend, member) for member, backend in enumerate(backends))
        self._tables.update(self._published, bytes(table))
        value = abi.Hash(
            key=_KEYS[by.key.kind],
            offset=by.key.offset,
            width=by.key.width,
            little=by.key.endian is Endian.LITTLE,
            table=self._published,
            max_load=round((by.max_load or 0) * abi.LOAD_UNIT),
        )
        self._hashes.update(pool, bytes(value))
        self._numbers[pool] = self._published
        self._published += 1

    def replace(self, pool: int, members: bytes) -> None:
        """Changes whose the places of a pool's table are.

        Programs that run meanwhile find each place either as it was or as it is now.
        """
        number = self._numbers[pool]
        table = abi.Table.from_buffer_copy(self._tables.lookup(number))
        table.members[: len(members)] = list(members)
        self._tables.update(number, bytes(table))

    def member(self, backend: int) -> int:
        """Which of its hashed pool's backends one is; of another pool's: 0."""
        return self._members.get(backend, 0)
