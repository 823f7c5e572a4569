"""sockmap-lb: a load balancer for messages, whose data path stays in the kernel."""

__version__ = "0.1.0"
