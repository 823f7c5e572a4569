"""A thin, checked layer over libbpf and the system calls beside it. It knows nothing of balancing."""

from lb.libbpf._prototypes import LibbpfMissingError, libbpf_version
from lb.libbpf.btf import Btf, Field, LayoutError, StructLayout, check_enum, check_struct
from lb.libbpf.linux import (
    clear_capabilities,
    drop_bounding_set,
    effective_capabilities,
    seccomp_filters,
    set_no_new_privs,
)
from lb.libbpf.maps import ArrayMap, ArrayOfMaps, HashMap, Map, MapType, PerCpuArray, SockMap, UpdateFlag
from lb.libbpf.object import LoadError, Object, OpenObject
from lb.libbpf.program import AttachType, Program
from lb.libbpf.ring import RingReader

__all__ = [
    "ArrayMap",
    "ArrayOfMaps",
    "AttachType",
    "Btf",
    "Field",
    "HashMap",
    "LayoutError",
    "LibbpfMissingError",
    "LoadError",
    "Map",
    "MapType",
    "Object",
    "OpenObject",
    "PerCpuArray",
    "Program",
    "RingReader",
    "SockMap",
    "StructLayout",
    "UpdateFlag",
    "check_enum",
    "check_struct",
    "clear_capabilities",
    "drop_bounding_set",
    "effective_capabilities",
    "libbpf_version",
    "seccomp_filters",
    "set_no_new_privs",
]
