"""Giving up privilege: the few system calls for it that Python lacks.

Privileges belong to threads, not to the process: call the functions that drop them before other threads
start; threads that start later inherit.
"""

from pathlib import Path
from typing import Final

from lb.libbpf._prototypes import CapData, CapHeader, libc

# linux/prctl.h
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_CAPABILITY_VERSION_3: Final = 0x20080522  # linux/capability.h: two CapData, 64 capabilities


def set_no_new_privs() -> None:
    """Let no execve() give this thread privileges, as set-user-ID files do. Source: prctl(2)."""
    libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_bounding_set() -> None:
    """Take every capability out of this thread's bounding set, so that no execve() brings one back.

    Raises OSError: EPERM without CAP_SETPCAP. Source: capabilities(7).
    """
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_bytes())
    for capability in range(last + 1):
        libc().prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def clear_capabilities() -> None:
    """Give up every capability of this thread: ambient, effective, permitted and inheritable.

    Needs no privilege and cannot be undone. Source: capset(2), capabilities(7).
    """
    libc().prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc().capset(CapHeader(_CAPABILITY_VERSION_3, 0), (CapData * 2)())


def effective_capabilities() -> frozenset[int]:
    """The numbers of the capabilities that this thread may use now. Source: proc(5), CapEff."""
    status = Path("/proc/thread-self/status").read_bytes()
    mask = int(status.partition(b"\nCapEff:")[2].split(maxsplit=1)[0], 16)
    return frozenset(bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def seccomp_filters() -> bool:
    """Whether a seccomp profile may refuse this thread's system calls. Source: proc(5)."""
    return b"\nSeccomp:\t2\n" in Path("/proc/thread-self/status").read_bytes()
