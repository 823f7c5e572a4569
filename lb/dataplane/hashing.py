"""Hashed pools as the programs read them."""

from collections.abc import Sequence

from lb import abi
from lb.framing import Endian
from lb.libbpf import ArrayMap, Object
from lb.ranges import Ranges
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
        self.tables = Ranges("hashed pools", self._tables.max_entries)
        self._table_of: dict[int, int] = {}  # by pool
        self._members: dict[int, int] = {}  # by backend: which of its pool's it is

    def publish(self, pool: int, by: Hash, backends: Sequence[int | None], members: bytes) -> None:
        """Makes the table of a pool known to the programs, before a client of it is.

        Args:
            pool: its index.
            by: what is hashed, and how much load a backend takes.
            backends: indices of its backends, by their number as a member; None: nobody has the number.
            members: whose each place is, as such a number: :func:`lb.maglev.table`.

        Raises:
            TableFullError: the maps were not loaded for one more.
        """
        table = self._table_of[pool] = self.tables.acquire()
        self.replace(pool, backends, members)
        value = abi.Hash(
            key=_KEYS[by.key.kind],
            offset=by.key.offset,
            width=by.key.width,
            little=by.key.endian is Endian.LITTLE,
            table=table,
            max_load=round((by.max_load or 0) * abi.LOAD_UNIT),
        )
        self._hashes.update(pool, bytes(value))

    def replace(self, pool: int, backends: Sequence[int | None], members: bytes) -> None:
        """Changes the table of a pool while programs use it: each place is whose it was, or whose it is.

        A member that has left keeps its number and its backend until no program can mean it any more.
        """
        table = abi.Table()
        for member, backend in enumerate(backends):
            if backend is not None:
                table.backends[member] = backend
                self.join(backend, member)
        table.members[: len(members)] = list(members)
        self._tables.update(self._table_of[pool], bytes(table))

    def join(self, backend: int, member: int) -> None:
        """A backend is this member of its pool. To be said before it has an upstream."""
        self._members[backend] = member

    def part(self, backend: int) -> None:
        """A backend is nobody's member any more."""
        self._members.pop(backend, None)

    def withdraw(self, pool: int) -> None:
        """No client of a pool is left."""
        table = self._table_of.pop(pool, None)
        if table is not None:
            self.tables.release(table)

    def member(self, backend: int) -> int:
        """Which of its hashed pool's backends one is; of another pool's: 0."""
        return self._members.get(backend, 0)
