"""BPF programs of a loaded object."""

import enum

from lb.libbpf._prototypes import ProgramPointer, libbpf
from lb.libbpf.maps import SockMap


class AttachType(enum.IntEnum):
    """Where a program is attached to a sockmap; numbers of ``enum bpf_attach_type``."""

    SK_SKB_STREAM_PARSER = 4
    SK_SKB_STREAM_VERDICT = 5
    SK_MSG_VERDICT = 7
    SK_SKB_VERDICT = 38


class Program:
    """A program in the kernel; the object owns its descriptor, and `fd` is -1 once that is closed."""

    def __init__(self, pointer: ProgramPointer) -> None:
        """Describe a program whose object is loaded."""
        bpf = libbpf()
        self.name: str = bpf.bpf_program__name(pointer).decode()
        self.fd: int = bpf.bpf_program__fd(pointer)

    def forget(self) -> None:
        """Forget the descriptor; for its owner, who is about to close it."""
        self.fd = -1

    def attach_sockmap(self, sockmap: SockMap, attach_type: AttachType) -> None:
        """Run this program for the sockets that are inserted from now on.

        A program that was attached there before is replaced. Attachment lasts as long as the map: closing
        the object does not end it while sockets are in the map. Raises OSError: EINVAL if the program is of
        another type, EOPNOTSUPP if it contradicts one that is attached.
        Source: sock_map_get_from_fd() in net/core/sock_map.c.
        """
        libbpf().bpf_prog_attach(self.fd, sockmap.fd, attach_type, 0)

    def detach_sockmap(self, sockmap: SockMap, attach_type: AttachType) -> None:
        """End an attachment. Raises OSError: ENOENT if it is not this program that is attached."""
        libbpf().bpf_prog_detach2(self.fd, sockmap.fd, attach_type)
