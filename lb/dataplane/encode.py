"""Declared framings as the programs read them."""

from lb import abi
from lb.framing import Endian, Field, Framing, Match, OneOf, Ordering, Responses, Transfers


def encode(framing: Framing) -> abi.Framing:
    """The framing as a value of ``lb_framings``."""
    value = abi.Framing(
        window=framing.window,
        min_message=framing.min_message,
        max_message=framing.max_message,
        adjust=framing.length.adjust,
        length=_field(framing.length.field, framing.length.mask),
    )
    if framing.id is not None:
        value.id_width = framing.id.width
        value.id = _field(framing.id)
        value.response_id = _field(framing.response_id or framing.id)
        if framing.id_after is not None:
            value.id.offset += framing.id_after.end
            value.id_after = _field(framing.id_after)
    if framing.response is not None:
        value.response = _match(framing.response)
    if isinstance(framing.no_response, OneOf):
        value.no_response = _field(framing.no_response.field, framing.no_response.mask)
        for byte in framing.no_response.values:
            value.no_response_set[byte >> 6] |= 1 << (byte & 63)
    elif framing.no_response is not None:
        value.no_response = _match(framing.no_response)
    if framing.magic is not None:
        value.magic = _match(framing.magic)
    if framing.response_error is not None:
        value.error = _match(framing.response_error)
    value.edits = len(framing.refusal)
    for place, edit in enumerate(framing.refusal):
        value.refusal[place] = abi.Edit(offset=edit.offset, keep=edit.keep, set=edit.set)
    value.flags = _flags(framing)
    return value


def _flags(framing: Framing) -> abi.FramingFlag:
    flag = abi.FramingFlag
    declared = {
        flag.HAS_ID: framing.id is not None,
        flag.ID_AFTER: framing.id_after is not None,
        flag.HAS_RESPONSE: framing.response is not None,
        flag.HAS_NO_RESPONSE: framing.no_response is not None,
        flag.NO_RESPONSE_SET: isinstance(framing.no_response, OneOf),
        flag.HAS_MAGIC: framing.magic is not None,
        flag.FIFO: framing.ordering is Ordering.FIFO,
        flag.MANY_RESPONSES: framing.responses is not Responses.ONE,
        flag.ANY_RESPONSES: framing.responses is Responses.ANY,
        flag.KEEP_HEADS: framing.error_reply is not None,
        flag.HAS_ERROR: framing.response_error is not None,
        flag.DNS_TRANSFERS: framing.transfers is Transfers.DNS,
    }
    return flag(sum(one for one, is_declared in declared.items() if is_declared))


def _field(field: Field, mask: int | None = None, value: int = 0) -> abi.Field:
    return abi.Field(
        offset=field.offset,
        shift=64 - 8 * field.width,
        little=field.endian is Endian.LITTLE,
        mask=field.ones if mask is None else mask,
        value=value,
    )


def _match(match: Match) -> abi.Field:
    return _field(match.field, match.mask, match.value)
