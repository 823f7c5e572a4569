"""The configuration file: YAML to immutable, validated values. Pure but for reading the file."""

from lb.config.errors import ConfigError, ConfigErrors
from lb.config.model import (
    Address,
    Admin,
    Backend,
    Balance,
    Config,
    Connections,
    HealthCheck,
    Limits,
    Listener,
    Networks,
    Over,
    Pool,
    ProxyVersion,
    Rate,
    Runtime,
    Timeouts,
    Workers,
    within,
)
from lb.config.parse import load, parse

__all__ = [
    "Address",
    "Admin",
    "Backend",
    "Balance",
    "Config",
    "ConfigError",
    "ConfigErrors",
    "Connections",
    "HealthCheck",
    "Limits",
    "Listener",
    "Networks",
    "Over",
    "Pool",
    "ProxyVersion",
    "Rate",
    "Runtime",
    "Timeouts",
    "Workers",
    "load",
    "parse",
    "within",
]
