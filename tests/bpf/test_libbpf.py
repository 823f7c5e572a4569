import ctypes
import enum
import errno
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lb.libbpf import (
    ArrayMap,
    ArrayOfMaps,
    AttachType,
    Btf,
    HashMap,
    LayoutError,
    LibbpfMissingError,
    LoadError,
    Map,
    MapType,
    Object,
    PerCpuArray,
    SockMap,
    UpdateFlag,
    _prototypes,
    check_enum,
    check_struct,
    libbpf_version,
)

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("clang") is None, reason="needs root and clang"
)

ROOT = Path(__file__).parents[2]
HEADERS = [Path("/usr/include/bpf") / name for name in ("bpf.h", "libbpf.h", "btf.h")]
TIMEOUT = 20  # seconds, for programs and reads that end at once


class Inner(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint16), ("bytes", ctypes.c_uint8 * 6))


class Record(ctypes.Structure):
    _fields_ = (
        ("cookie", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("color", ctypes.c_uint32),
        ("inner", Inner * 2),
        ("next", ctypes.c_uint64),
        ("matrix", ctypes.c_uint8 * 8),
    )


class State(ctypes.Structure):
    _fields_ = (("spin_ns", ctypes.c_uint64), ("started", ctypes.c_uint32), ("finished", ctypes.c_uint32))


class Narrow(ctypes.Structure):
    _fields_ = (("value", ctypes.c_uint32),)


Compiler = Callable[[Path, Path], Path]


@pytest.fixture
def loaded(sample: Path) -> Iterator[Object]:
    with Object.open(sample).load() as loaded:
        yield loaded


@pytest.fixture(scope="module")
def btf(sample: Path) -> Btf:
    with Object.open(sample) as opened:
        return opened.btf()


Pair = tuple[socket.socket, socket.socket]


@contextmanager
def connection() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        with socket.create_connection(server.getsockname(), TIMEOUT) as client:
            accepted, _ = server.accept()
            with accepted:
                accepted.settimeout(TIMEOUT)
                yield client, accepted


@pytest.fixture
def pair() -> Iterator[Pair]:
    with connection() as pair:
        yield pair


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestPrototypes:
    @staticmethod
    def declarations() -> dict[str, tuple[str, list[str]]]:
        """Return type and parameters of each function that the headers declare."""
        text = "\n".join(header.read_text() for header in HEADERS)
        text = re.sub(r"/\*.*?\*/|//[^\n]*|^#[^\n]*", " ", text, flags=re.DOTALL | re.MULTILINE)
        found = {}
        for restype, name, parameters in re.findall(r"LIBBPF_API\s+([^;(]*?)(\w+)\s*\(([^;]*?)\)\s*;", text):
            listed = [" ".join(part.split()) for part in parameters.split(",")]
            found[name] = restype.strip(), [] if listed == ["void"] else listed
        return found

    @staticmethod
    def expected(declared: str) -> Any:
        """The ctypes type for a C type or parameter."""
        if (opaque := re.search(r"struct (\w+) ?\*", declared)) is not None:
            name = {"btf": "btf_handle", "bpf_object_open_opts": "open_opts"}.get(opaque[1], opaque[1])
            return getattr(_prototypes, f"{name}".title().replace("_", ""))
        types = {
            r"libbpf_print_fn_t": _prototypes.PrintFn,
            r"ring_buffer_sample_fn": _prototypes.RecordFn,
            r"(const )?void \*": ctypes.c_void_p,
            r"(const )?char \*": ctypes.c_char_p,
            r"__u32 \*": ctypes.c_uint32,
            r"void$": None,
            r"bool": ctypes.c_bool,
            r"size_t": ctypes.c_size_t,
            r"__u64": ctypes.c_uint64,
            r"__u32|unsigned int": ctypes.c_uint32,
            r"int|enum \w+": ctypes.c_int,
        }
        return next(found for pattern, found in types.items() if re.match(pattern, declared))

    @pytest.mark.parametrize("row", _prototypes.LIBBPF, ids=lambda row: row.name)
    def test_every_row_is_what_the_headers_declare(self, row: _prototypes.Prototype) -> None:
        restype, parameters = self.declarations()[row.name]
        ours = [row.restype, *row.argtypes]
        theirs = [restype, *parameters]
        assert len(ours) == len(theirs)
        for our, declared in zip(ours, theirs, strict=True):
            pointed_at = getattr(our, "_type_", our) if hasattr(our, "contents") else our
            assert pointed_at is self.expected(declared), declared

    def test_every_row_has_a_convention(self) -> None:
        for row in _prototypes.LIBBPF + _prototypes.LIBC:
            assert isinstance(row.errors, _prototypes.Convention)
            if row.errors is _prototypes.Convention.NEGATIVE_ERRNO:
                assert row.restype is ctypes.c_int

    def test_only_the_table_can_be_called(self) -> None:
        assert hasattr(_prototypes.libbpf(), "bpf_object__load")
        assert not hasattr(_prototypes.libbpf(), "bpf_object__pin")

    def test_a_map_cannot_be_passed_for_an_object(self) -> None:
        pointer = ctypes.POINTER(_prototypes.BpfMap)()
        with pytest.raises(ctypes.ArgumentError):
            _prototypes.libbpf().bpf_object__close(pointer)

    def test_a_failed_call_names_the_function(self) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            _prototypes._check_negative_errno(-errno.ENOENT, _prototypes.libbpf().bpf_map__fd, ())
        assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "bpf_map__fd")

    def test_the_numbers_of_libbpf_itself_have_a_text(self) -> None:
        error = _prototypes._failure(4002, _prototypes.libbpf().bpf_object__load)
        assert error.strerror is not None
        assert "version" in error.strerror

    def test_without_libbpf_the_remedy_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_prototypes, "SONAME", "libbpf.so.none")
        with pytest.raises(LibbpfMissingError, match="apt-get install libbpf1"):
            _prototypes.libbpf.__wrapped__()

    def test_version(self) -> None:
        assert re.fullmatch(r"1\.\d+", libbpf_version())


class TestObject:
    def test_maps_by_name_and_kind(self, loaded: Object) -> None:
        kinds = {name: type(found) for name, found in loaded.maps.items()}
        assert kinds == {
            "table": ArrayMap,
            "states": ArrayMap,
            "narrow": ArrayMap,
            "verdicts": PerCpuArray,
            "conns": HashMap,
            "socks": SockMap,
            "events": Map,
            "inner": ArrayMap,
            "outer": ArrayOfMaps,
        }
        table = loaded.map("table", ArrayMap)
        assert (table.type, table.key_size, table.value_size, table.max_entries) == (MapType.ARRAY, 4, 48, 4)

    def test_from_bytes(self, sample: Path) -> None:
        with Object.open(sample.read_bytes(), "sample").load() as loaded:
            assert loaded.program("verdict").name == "verdict"

    def test_a_map_of_another_kind_is_refused(self, loaded: Object) -> None:
        with pytest.raises(TypeError, match="map table is a ArrayMap, not a HashMap"):
            loaded.map("table", HashMap)
        with pytest.raises(KeyError):
            loaded.map("missing", ArrayMap)

    def test_resize(self, sample: Path) -> None:
        with Object.open(sample) as opened:
            opened.set_max_entries("table", 9)
            with pytest.raises(KeyError):
                opened.set_max_entries("missing", 9)
            with pytest.raises(ValueError, match="no u32"):
                opened.set_max_entries("table", 1 << 32)
            with opened.load() as loaded:
                table = loaded.map("table", ArrayMap)
                assert table.max_entries == 9
                table.update(8, bytes(48))

    def test_load_consumes_the_open_object(self, sample: Path) -> None:
        opened = Object.open(sample)
        with opened.load() as loaded:
            for misuse in (opened.load, opened.btf, lambda: opened.set_max_entries("table", 2)):
                with pytest.raises(ValueError, match="loaded or closed"):
                    misuse()
            opened.close()
            assert loaded.map("table", ArrayMap).lookup(0) == bytes(48)

    def test_closing_twice_is_harmless_and_forgets_the_descriptors(self, sample: Path) -> None:
        before = open_fds()
        loaded = Object.open(sample).load()
        table, program = loaded.map("table", ArrayMap), loaded.program("verdict")
        loaded.close()
        loaded.close()
        assert (table.fd, program.fd) == (-1, -1)
        with pytest.raises(OSError, match="bpf_map_lookup_elem") as caught:
            table.lookup(0)
        assert caught.value.errno == errno.EBADF
        assert open_fds() == before

    def test_what_is_not_elf_is_refused_with_a_log(self) -> None:
        before = open_fds()
        with pytest.raises(LoadError) as caught:
            Object.open(b"not an object", "junk")
        assert "junk" in caught.value.log
        assert caught.value.filename == "bpf_object__open_mem"
        assert open_fds() == before

    def test_a_refused_program_comes_with_the_verifiers_log(
        self, compile_bpf: Compiler, tmp_path: Path
    ) -> None:
        source = tmp_path / "refused.bpf.c"
        source.write_text("""
            #include <linux/bpf.h>
            #include <bpf/bpf_helpers.h>
            SEC("sk_skb/stream_parser") int refused(struct __sk_buff *skb)
            {
                return *(__u32 *)(long)skb->data;
            }
            char _license[] SEC("license") = "GPL";
        """)
        before = open_fds()
        opened = Object.open(compile_bpf(source, tmp_path / "refused.bpf.o"))
        with pytest.raises(LoadError) as caught:
            opened.load()
        assert caught.value.errno == errno.EACCES
        assert "invalid access to packet" in caught.value.log
        assert "prog 'refused'" in caught.value.log
        assert caught.value.__notes__ == [caught.value.log]
        assert open_fds() == before

    def test_no_capability_is_needed_once_loaded(self, sample: Path) -> None:
        code = f"""if True:
            import os
            from pathlib import Path
            from lb.libbpf import ArrayMap, Object, clear_capabilities, effective_capabilities
            loaded = Object.open(Path({str(sample)!r})).load()
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            clear_capabilities()
            assert not effective_capabilities()
            table = loaded.map("table", ArrayMap)
            table.update(1, b"x" * 48)
            assert table.lookup(1) == b"x" * 48
        """
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=TIMEOUT)


class TestArrayMap:
    def test_update_and_lookup(self, loaded: Object) -> None:
        table = loaded.map("table", ArrayMap)
        record = Record(cookie=7, count=8, matrix=(1, 2, 3, 4, 5, 6, 7, 8))
        table.update(3, bytes(record))
        assert table.lookup(3) == bytes(record)
        assert table.lookup(2) == bytes(48)
        copy = Record()
        table.lookup_into(3, copy)
        assert bytes(copy) == bytes(record)

    @pytest.mark.parametrize(
        ("index", "flag", "number"),
        [(4, UpdateFlag.ANY, errno.E2BIG), (0, UpdateFlag.NOEXIST, errno.EEXIST), (0, 1 << 9, errno.EINVAL)],
    )
    def test_refused_updates(self, loaded: Object, index: int, flag: int, number: int) -> None:
        with pytest.raises(OSError, match="bpf_map_update_elem") as caught:
            loaded.map("table", ArrayMap).update(index, bytes(48), flag)
        assert caught.value.errno == number

    def test_lookup_out_of_range(self, loaded: Object) -> None:
        table = loaded.map("table", ArrayMap)
        with pytest.raises(FileNotFoundError):
            table.lookup(4)
        with pytest.raises(FileNotFoundError):
            table.lookup_into(4, Record())

    def test_wrong_sizes_are_refused_before_the_kernel_sees_them(self, loaded: Object) -> None:
        table = loaded.map("table", ArrayMap)
        with pytest.raises(ValueError, match="a value has 48 bytes, not 47"):
            table.update(0, bytes(47))
        with pytest.raises(ValueError, match="not the 8 of Inner"):
            table.lookup_into(0, Inner())
        for index in (-1, 1 << 32):
            with pytest.raises(ValueError, match="no u32"):
                table.lookup(index)


class TestView:
    def test_both_ways(self, loaded: Object) -> None:
        states = loaded.map("states", ArrayMap)
        view = states.view(State)
        assert len(view) == 300
        states.update(299, bytes(State(5, 6, 7)))
        assert (view[299].spin_ns, view[299].started, view[299].finished) == (5, 6, 7)
        view[1].started = 9
        assert states.lookup(1) == bytes(State(0, 9, 0))

    def test_outlives_the_object(self, sample: Path) -> None:
        before = open_fds()
        with Object.open(sample).load() as loaded:
            element = loaded.map("states", ArrayMap).view(State)[2]
            element.spin_ns = 1 << 40
        assert open_fds() == before
        assert element.spin_ns == 1 << 40

    def test_is_unmapped_with_its_last_reference(self, loaded: Object) -> None:
        def mapped() -> bool:
            return "anon_inode:bpf-map" in Path("/proc/self/maps").read_text()

        states = loaded.map("states", ArrayMap)
        element = states.view(State)[2]
        assert mapped()
        del element
        assert not mapped()

    def test_a_closed_object_has_no_views(self, sample: Path) -> None:
        with Object.open(sample).load() as loaded:
            states = loaded.map("states", ArrayMap)
        with pytest.raises(OSError, match="mmap") as caught:
            states.view(State)
        assert caught.value.errno == errno.EBADF

    def test_what_cannot_be_mapped(self, loaded: Object) -> None:
        with pytest.raises(ValueError, match="table is not BPF_F_MMAPABLE"):
            loaded.map("table", ArrayMap).view(Record)
        with pytest.raises(ValueError, match="same multiple of 8"):
            loaded.map("states", ArrayMap).view(Inner)
        with pytest.raises(ValueError, match="same multiple of 8"):
            loaded.map("narrow", ArrayMap).view(Narrow)


class TestHashMap:
    KEYS = tuple(struct.pack("=Q", key) for key in range(3))

    def test_update_lookup_delete(self, loaded: Object) -> None:
        conns = loaded.map("conns", HashMap)
        conns.update(self.KEYS[0], b"12345678")
        assert conns.lookup(self.KEYS[0]) == b"12345678"
        conns.delete(self.KEYS[0])
        for call in (conns.lookup, conns.delete):
            with pytest.raises(FileNotFoundError):
                call(self.KEYS[0])

    def test_delete_batch(self, loaded: Object) -> None:
        conns = loaded.map("conns", HashMap)
        conns.delete_batch([])
        for key in self.KEYS[:2]:
            conns.update(key, bytes(8))
        conns.delete_batch(self.KEYS[:2])
        assert conns.keys() == []
        with pytest.raises(FileNotFoundError):
            conns.delete_batch(self.KEYS[:1])
        with pytest.raises(ValueError, match="a key has 8 bytes"):
            conns.delete_batch([bytes(8), bytes(4)])

    def test_full(self, loaded: Object) -> None:
        conns = loaded.map("conns", HashMap)
        for key in self.KEYS[:2]:
            conns.update(key, bytes(8))
        with pytest.raises(OSError, match="bpf_map_update_elem") as caught:
            conns.update(self.KEYS[2], bytes(8))
        assert caught.value.errno == errno.E2BIG

    def test_flags(self, loaded: Object) -> None:
        conns = loaded.map("conns", HashMap)
        with pytest.raises(FileNotFoundError):
            conns.update(self.KEYS[0], bytes(8), UpdateFlag.EXIST)
        conns.update(self.KEYS[0], bytes(8), UpdateFlag.NOEXIST)
        with pytest.raises(FileExistsError):
            conns.update(self.KEYS[0], bytes(8), UpdateFlag.NOEXIST)

    def test_wrong_sizes(self, loaded: Object) -> None:
        conns = loaded.map("conns", HashMap)
        with pytest.raises(ValueError, match="a key has 8 bytes, not 4"):
            conns.lookup(bytes(4))
        with pytest.raises(ValueError, match="a value has 8 bytes, not 9"):
            conns.update(bytes(8), bytes(9))


class TestArrayOfMaps:
    def test_only_a_map_of_the_declared_kind_fits(self, loaded: Object) -> None:
        outer, inner = loaded.map("outer", ArrayOfMaps), loaded.map("inner", ArrayMap)

        def refused(index: int, other: Map) -> int | None:
            with pytest.raises(OSError, match="bpf_map_update_elem") as caught:
                outer.insert(index, other)
            return caught.value.errno

        outer.insert(1, inner)
        outer.insert(1, inner)
        assert refused(2, inner) == errno.E2BIG
        assert refused(0, loaded.map("table", ArrayMap)) == errno.EINVAL
        assert refused(0, outer) == errno.EINVAL
        with pytest.raises(ValueError, match="no u32"):
            outer.insert(-1, inner)

    def test_a_closed_object_has_no_map_to_insert(self, sample: Path) -> None:
        with Object.open(sample).load() as loaded:
            outer, inner = loaded.map("outer", ArrayOfMaps), loaded.map("inner", ArrayMap)
            inner.forget()
            with pytest.raises(OSError, match="bpf_map_update_elem") as caught:
                outer.insert(0, inner)
            assert caught.value.errno == errno.EBADF


class TestSockMap:
    def test_slots(self, loaded: Object, pair: Pair) -> None:
        socks = loaded.map("socks", SockMap)
        client, accepted = pair

        def refused(slot: int, sock: socket.socket) -> int | None:
            with pytest.raises(OSError, match="bpf_map_update_elem") as caught:
                socks.insert(slot, sock.fileno())
            return caught.value.errno

        socks.insert(0, client.fileno())
        assert refused(0, accepted) == errno.EEXIST
        assert refused(2, accepted) == errno.E2BIG
        with socket.socket() as unconnected:
            assert refused(1, unconnected) == errno.EOPNOTSUPP
        socks.remove(0)
        with pytest.raises(OSError, match="bpf_map_delete_elem") as caught:
            socks.remove(0)
        assert caught.value.errno == errno.EINVAL

    def test_closing_a_socket_empties_its_slot(self, loaded: Object, pair: Pair) -> None:
        socks = loaded.map("socks", SockMap)
        with connection() as other:
            socks.insert(0, other[0].fileno())
        socks.insert(0, pair[0].fileno())

    def test_a_socket_that_runs_programs_fits_one_slot(self, loaded: Object, pair: Pair) -> None:
        socks = loaded.map("socks", SockMap)
        loaded.program("parser").attach_sockmap(socks, AttachType.SK_SKB_STREAM_PARSER)
        loaded.program("verdict").attach_sockmap(socks, AttachType.SK_SKB_STREAM_VERDICT)
        socks.insert(0, pair[0].fileno())
        with pytest.raises(OSError, match="bpf_map_update_elem") as caught:
            socks.insert(1, pair[0].fileno())
        assert caught.value.errno == errno.EBUSY

    def test_attached_programs_run_and_count_per_cpu(self, loaded: Object, pair: Pair) -> None:
        socks, verdicts = loaded.map("socks", SockMap), loaded.map("verdicts", PerCpuArray)
        client, accepted = pair
        loaded.program("parser").attach_sockmap(socks, AttachType.SK_SKB_STREAM_PARSER)
        loaded.program("verdict").attach_sockmap(socks, AttachType.SK_SKB_STREAM_VERDICT)
        socks.insert(0, accepted.fileno())
        client.sendall(b"hello")
        assert accepted.recv(16) == b"hello"

        assert (verdicts.value_size, verdicts.stride) == (4, 8)
        counts = verdicts.lookup(0)
        assert len(counts) == 8 * verdicts.cpus
        assert sum(struct.unpack(f"={verdicts.cpus}Q", counts)) == 1
        assert verdicts.lookup(1) == bytes(8 * verdicts.cpus)
        with pytest.raises(FileNotFoundError):
            verdicts.lookup(2)

    def test_detach(self, loaded: Object) -> None:
        socks, parser = loaded.map("socks", SockMap), loaded.program("parser")
        parser.attach_sockmap(socks, AttachType.SK_SKB_STREAM_PARSER)
        parser.detach_sockmap(socks, AttachType.SK_SKB_STREAM_PARSER)
        with pytest.raises(FileNotFoundError):
            parser.detach_sockmap(socks, AttachType.SK_SKB_STREAM_PARSER)

    def test_a_program_of_another_type_is_refused(self, loaded: Object) -> None:
        with pytest.raises(OSError, match="bpf_prog_attach") as caught:
            loaded.program("parser").attach_sockmap(loaded.map("socks", SockMap), AttachType.SK_MSG_VERDICT)
        assert caught.value.errno == errno.EINVAL


def btf_section(types: bytes, strings: bytes) -> bytes:
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


class TestBtf:
    def test_layout(self, btf: Btf) -> None:
        layout = btf.struct_layout("sample_record")
        assert layout.size == 48
        assert layout.fields == (
            ("cookie", 0, 8),
            ("count", 8, 4),
            ("color", 12, 4),
            ("inner", 16, 16),
            ("next", 32, 8),
            ("matrix", 40, 8),
        )

    def test_mirrors(self, btf: Btf) -> None:
        for mirror, name in ((Record, "sample_record"), (Inner, "sample_inner"), (State, "sample_state")):
            check_struct(btf, mirror, name)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ((("low", ctypes.c_uint16), ("bytes", ctypes.c_uint8 * 5)), "bytes is 6 bytes at offset 2"),
            ((("low", ctypes.c_uint32), ("bytes", ctypes.c_uint8 * 4)), "low is 2 bytes at offset 0"),
            ((("high", ctypes.c_uint16), ("bytes", ctypes.c_uint8 * 6)), "high is 2 bytes at offset 0"),
            ((("low", ctypes.c_uint16),), "there is no further field"),
            (
                (("low", ctypes.c_uint16), ("bytes", ctypes.c_uint8 * 6), ("more", ctypes.c_uint8)),
                "more is 1 bytes at offset 8",
            ),
        ],
    )
    def test_a_difference_names_the_field(
        self, btf: Btf, fields: tuple[tuple[str, Any], ...], message: str
    ) -> None:
        mirror = type("Mirror", (ctypes.Structure,), {"_fields_": fields})
        with pytest.raises(LayoutError, match=f"struct sample_inner: .*{message}"):
            check_struct(btf, mirror, "sample_inner")

    def test_a_difference_of_the_size_alone(self) -> None:
        one = struct.pack("=IIIIII", 1, 4 << 24 | 1, 8, 3, 2, 0) + struct.pack("=IIII", 0, 1 << 24, 4, 32)
        padded = Btf(btf_section(one, b"\0s\0value\0"))
        with pytest.raises(LayoutError, match="struct s has 8 bytes, but Narrow 4"):
            check_struct(padded, Narrow, "s")

    def test_bit_fields_are_refused(self) -> None:
        integer = struct.pack("=IIII", 0, 1 << 24, 4, 32)
        bits = struct.pack("=IIIIII", 1, 1 << 31 | 4 << 24 | 1, 4, 3, 1, 5 << 24)
        with pytest.raises(LayoutError, match="struct s: value is a bit field"):
            Btf(btf_section(integer + bits, b"\0s\0value\0")).struct_layout("s")

    def test_what_is_missing_or_unreadable(self, btf: Btf) -> None:
        with pytest.raises(LayoutError, match="no struct sample_missing"):
            btf.struct_layout("sample_missing")
        with pytest.raises(LayoutError, match="no enum sample_missing"):
            btf.enum_values("sample_missing")
        for raw in (b"", bytes(24), btf_section(struct.pack("=III", 0, 31 << 24, 0), b"\0")):
            with pytest.raises(LayoutError, match="BTF"):
                Btf(raw)

    def test_enums(self, btf: Btf) -> None:
        assert btf.enum_values("sample_color") == {"SAMPLE_RED": 1, "SAMPLE_BLUE": 1 << 20}

    def test_wide_and_signed_enums(self) -> None:
        signed = struct.pack("=III", 1, 1 << 31 | 6 << 24 | 1, 4) + struct.pack("=Ii", 3, -2)
        wide = struct.pack("=III", 1, 19 << 24 | 1, 8) + struct.pack("=III", 3, 5, 1 << 31)
        for types, value in ((signed, -2), (wide, 1 << 63 | 5)):
            assert Btf(btf_section(types, b"\0e\0A\0")).enum_values("e") == {"A": value}

    def test_enum_mirror(self, btf: Btf) -> None:
        class Color(enum.IntEnum):
            RED = 1
            BLUE = 1 << 20

        class Faded(enum.IntEnum):
            RED = 1
            BLUE = 2

        check_enum(btf, Color, "sample_color", "SAMPLE_")
        with pytest.raises(LayoutError, match="SAMPLE_BLUE is 1048576, but in Faded 2"):
            check_enum(btf, Faded, "sample_color", "SAMPLE_")
        with pytest.raises(LayoutError, match="SAMPLE_RED is 1, but in Color missing"):
            check_enum(btf, Color, "sample_color")

    def test_our_numbers_are_the_kernels(self, btf: Btf) -> None:
        theirs = btf.enum_values("bpf_map_type") | btf.enum_values("bpf_attach_type")
        for kind in MapType:
            assert kind == theirs[f"BPF_MAP_TYPE_{kind.name}"]
        for attach in AttachType:
            assert attach == theirs[f"BPF_{attach.name}"]
