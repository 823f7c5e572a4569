"""Finding out whether backends work: by trying them, and from what happens to the messages that they get."""

from lb.health.monitor import Monitor
from lb.health.probes import Outcome, probe

__all__ = ["Monitor", "Outcome", "probe"]
