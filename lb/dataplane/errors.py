"""What this machine cannot do, for ever or for now."""

import errno

# What the kernel says when it has no memory, or no room in a map or an epoll set, for one more socket: it may
# have some again when connections end. EPERM: beyond `ulimit -l`, where maps are still charged to that.
NO_MEMORY = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.E2BIG, errno.ENOSPC, errno.EPERM})


class MachineError(Exception):
    """The machine refuses something that serving needs; says what, and what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
