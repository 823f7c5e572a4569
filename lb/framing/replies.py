"""What the balancer answers in a backend's stead, where the protocol has a word for it."""

from lb.framing.spec import ErrorReply, Framing

_HEADER = 14  # two bytes of length, twelve of the message
_QR, _OPCODE_RD, _RA = 0x80, 0x79, 0x80
_SERVFAIL = 2
_LONGEST_NAME = 255
_POINTER = 0xC0


def error_reply(framing: Framing, head: bytes) -> bytes | None:
    """The whole message that tells the client of a request that it failed.

    Args:
        framing: that of the request.
        head: the start of the request, of :data:`lb.abi.MAX_HEAD` bytes or the whole of it.

    Returns:
        None if the protocol has no such message, or if the head is none of a request.
    """
    if framing.error_reply is ErrorReply.DNS and len(head) >= _HEADER:
        return _servfail(head)
    return None


def refusal(framing: Framing, request: bytes) -> bytes | None:
    """The whole message that tells the client of a request that it was denied; mirrors ``bpf/lb_refuse.h``.

    None if the protocol has no such message.
    """
    if not framing.refusal:
        return None
    reply = bytearray(request)
    for edit in framing.refusal:
        reply[edit.offset] = reply[edit.offset] & edit.keep | edit.set
    return bytes(reply)


def _servfail(head: bytes) -> bytes:
    """RFC 1035 4.1: the header of the query as a response with RCODE 2, and its question."""
    question = _question(head)
    flags = bytes([(head[4] & _OPCODE_RD) | _QR, _RA | _SERVFAIL])
    body = head[2:4] + flags + (1 if question else 0).to_bytes(2, "big") + bytes(6) + question
    return len(body).to_bytes(2, "big") + body


def _question(head: bytes) -> bytes:
    """The only question of a query; nothing if it has none, or several, or if it is not all there."""
    if int.from_bytes(head[6:8], "big") != 1:
        return b""
    at = _HEADER
    while at < len(head) and head[at]:
        if head[at] & _POINTER or at - _HEADER > _LONGEST_NAME:
            return b""
        at += 1 + head[at]
    end = at + 5  # the root, type and class
    return head[_HEADER:end] if end <= len(head) else b""
