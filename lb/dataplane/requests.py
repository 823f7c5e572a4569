"""The requests that are outstanding where ids tell them apart (``bpf/lb_inflight.h``).

Programs enter a request and take it out with its response. User space looks when an upstream has died, and
takes out what it left in the table that all upstreams share.
"""

from collections.abc import Collection
from contextlib import suppress

from lb import abi
from lb.libbpf import HashMap, Object
from lb.slots import SlotRef


class Requests:
    """Those of all upstreams, but for the ones that clients share."""

    def __init__(
        self,
        loaded: Object,
        slots: abi.Slots,
        marks: abi.AllMarks,
    ) -> None:
        self._slots = slots
        self._marks = marks
        self._far = loaded.map("lb_inflight", HashMap)
        self._heads = loaded.map("lb_heads", HashMap)
        self.keeps_heads = self._heads.max_entries > 1
        self.by_id: set[int] = set()  # framings whose requests are among them

    def outstanding(self, upstreams: Collection[SlotRef]) -> dict[SlotRef, list[int]]:
        """The ids of the requests on some upstreams; none where the order of requests tells them apart.

        It may look through a table that is large: it belongs into a thread, and may run beside anything else.
        """
        found = {upstream: self._near(upstream) for upstream in upstreams}
        if any(map(self.far, upstreams)):
            for key in self._far.keys():  # noqa: SIM118 - a map is no dict
                entry = abi.InflightKey.from_buffer_copy(key)
                upstream = SlotRef(entry.slot, entry.generation)
                if upstream in found:
                    found[upstream].append(entry.id)
        return found

    def _near(self, upstream: SlotRef) -> list[int]:
        if self._slots[upstream.number].framing not in self.by_id:
            return []
        return [near.id for near in self._marks[upstream.number].requests if near.left]

    def far(self, upstream: SlotRef) -> int:
        """How many of an upstream's requests are in the table that all share."""
        return self._slots[upstream.number].far

    def left_behind(self, retired: Collection[SlotRef]) -> list[SlotRef]:
        """Those of the retired upstreams whose requests are to be forgotten before their slots are free."""
        slots = ((ref, self._slots[ref.number]) for ref in retired)
        return [
            ref
            for ref, slot in slots
            if slot.role == abi.Role.UPSTREAM
            and (slot.far or (self.keeps_heads and slot.sent != slot.answered))
        ]

    def forget(self, upstream: SlotRef, idents: Collection[int]) -> None:
        """Takes requests of a dead upstream out of the tables that all share."""
        if self._slots[upstream.number].far:
            _delete(self._far, upstream, idents)
        self.forget_heads(upstream, idents)

    def head(self, upstream: SlotRef, ident: int) -> bytes | None:
        """The start of an outstanding request, on a shared upstream too, if its framing keeps it."""
        try:
            head = abi.Head.from_buffer_copy(self._heads.lookup(_key(upstream, ident)))
        except FileNotFoundError:
            return None
        return bytes(head.bytes[: head.length])

    def forget_heads(self, upstream: SlotRef, idents: Collection[int]) -> None:
        """Forgets the starts of requests on an upstream that is gone."""
        if self.keeps_heads:
            _delete(self._heads, upstream, idents)


def _key(upstream: SlotRef, ident: int) -> bytes:
    return bytes(abi.InflightKey(*upstream, ident))


def _delete(table: HashMap, upstream: SlotRef, idents: Collection[int]) -> None:
    for ident in idents:
        with suppress(FileNotFoundError):
            table.delete(_key(upstream, ident))
