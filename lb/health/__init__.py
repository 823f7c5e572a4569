"""Finding out whether backends work: by trying them, and from what happens to the messages that they get."""

from lb.health.ejection import Ejections
from lb.health.monitor import Monitor
from lb.health.probes import Outcome, probe

__all__ = ["Ejections", "Monitor", "Outcome", "probe"]
