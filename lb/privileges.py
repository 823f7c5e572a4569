"""Giving up every privilege once the programs are loaded."""

# Python imports codecs when they are first used, which is too late for a user who cannot read its library.
import encodings.ascii
import encodings.idna
import encodings.latin_1  # noqa: F401
import os
import pwd

from lb.dataplane import MachineError
from lb.libbpf import clear_capabilities, drop_bounding_set, effective_capabilities, set_no_new_privs

_CAP_SETGID, _CAP_SETUID, _CAP_SETPCAP = 6, 7, 8


def drop(user: str | None) -> str:
    """Becomes ``user`` (None: whoever it is already), without any capability, for good.

    A container that runs as root without CAP_SETUID keeps its user id, but no capability either.

    Returns:
        What was done, for the log.

    Raises:
        MachineError: there is no such user, or the kernel did not let go of everything.
    """
    capabilities = effective_capabilities()
    if _CAP_SETPCAP in capabilities:
        drop_bounding_set()
    identity = f"user id {os.getuid()}"
    if user is not None and os.getuid() == 0 and {_CAP_SETUID, _CAP_SETGID} <= capabilities:
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise MachineError(
                f"there is no user {user!r}", "set runtime.user to an existing one, or to `none`"
            ) from None
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        identity = f"user {user}"
    clear_capabilities()
    set_no_new_privs()
    if left := effective_capabilities():
        raise MachineError(f"capabilities {sorted(left)} could not be dropped", "report this as a bug")
    return f"serving as {identity} without capabilities"
