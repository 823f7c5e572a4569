"""The control plane: accepts, connects, and keeps the sessions whose bytes the kernel carries."""

from lb.server.server import Server

__all__ = ["Server"]
