"""The admin address: metrics, state and commands over HTTP."""

from lb.admin.site import Admin

__all__ = ["Admin"]
