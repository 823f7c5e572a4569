"""The control plane: accepts, connects, and keeps the sessions whose bytes the kernel carries."""

from lb.server.server import Server
from lb.server.tapping import MOST_SAMPLES, Line, Tapping, TooManyViewersError, UnknownListenerError

__all__ = ["MOST_SAMPLES", "Line", "Server", "Tapping", "TooManyViewersError", "UnknownListenerError"]
