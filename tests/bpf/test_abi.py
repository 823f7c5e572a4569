"""The mirror in Python against the object that is loaded, and what no BTF describes against the headers."""

import ctypes
import enum
import re
import shutil
from importlib import resources

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lb import abi, framing, maglev, routing
from lb.dataplane import bucket_limit
from lb.libbpf import Btf, LayoutError, Object
from tests.headers import ROOT, Headers

HIGHEST = (1 << 32) - 1  # microseconds that the programs can tell


@pytest.fixture(scope="module")
def btf() -> Btf:
    image = resources.files("lb.dataplane").joinpath("lb.bpf.o").read_bytes()
    with Object.open(image) as opened:
        return opened.btf()


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Headers:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    return Headers(tmp_path_factory.mktemp("headers"))


# --- the mirror -------------------------------------------------------------------------------------------


def test_the_mirror_is_what_the_object_says(btf: Btf) -> None:
    abi.check(btf)


def test_every_struct_and_enum_of_the_header_that_is_shared_is_mirrored() -> None:
    text = (ROOT / "bpf/lb_abi.h").read_text(encoding="utf-8")

    assert set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE)) == set(abi.STRUCTS)
    assert set(re.findall(r"^enum (\w+) \{", text, re.MULTILINE)) == {*abi.ENUMS, "lb_limit"}


@pytest.mark.parametrize("name", [name for name, mirror in abi.STRUCTS.items() if len(mirror._fields_) > 1])
def test_two_fields_in_another_order_are_caught(btf: Btf, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fields = list(abi.STRUCTS[name]._fields_)

    class Mutated(ctypes.Structure):
        _fields_ = (fields[1], fields[0], *fields[2:])

    monkeypatch.setitem(abi.STRUCTS, name, Mutated)
    with pytest.raises(LayoutError, match=rf"struct {name}: .*Mutated"):
        abi.check(btf)


@pytest.mark.parametrize("name", abi.STRUCTS)
def test_a_further_field_is_caught(btf: Btf, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Mutated(ctypes.Structure):
        _fields_ = (*abi.STRUCTS[name]._fields_, ("more", ctypes.c_uint64))

    monkeypatch.setitem(abi.STRUCTS, name, Mutated)
    with pytest.raises(LayoutError, match=f"struct {name}: there is no further field"):
        abi.check(btf)


def test_a_field_of_another_size_or_name_is_caught(btf: Btf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wider(ctypes.Structure):
        _fields_ = (("balance", ctypes.c_uint64),)

    class Renamed(ctypes.Structure):
        _fields_ = (("policy", ctypes.c_uint32), ("pad", ctypes.c_uint32))

    for mirror in (Wider, Renamed):
        monkeypatch.setitem(abi.STRUCTS, "lb_pool", mirror)
        with pytest.raises(LayoutError, match="struct lb_pool: balance is 4 bytes at offset 0"):
            abi.check(btf)


def test_another_value_of_an_enum_is_caught(btf: Btf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Moved(enum.IntEnum):
        FREE = 0
        CLIENT = 2
        UPSTREAM = 1

    monkeypatch.setitem(abi.ENUMS, "lb_role", (Moved, "LB_ROLE_"))
    with pytest.raises(LayoutError, match="enum lb_role: LB_ROLE_CLIENT is 1, but in Moved 2"):
        abi.check(btf)


# --- limits -----------------------------------------------------------------------------------------------


def test_the_limits_are_those_of_the_header() -> None:
    text = (ROOT / "bpf/lb_abi.h").read_text(encoding="utf-8")
    body = re.search(r"enum lb_limit \{(.*?)\};", text, re.DOTALL)
    assert body is not None
    limits = {
        name: int(value, 0) << int(shift or "0")
        for name, value, shift in re.findall(r"LB_(\w+) = (\w+)(?: << (\d+))?,", body[1])
    }

    assert limits == {
        "MAX_UPSTREAMS": abi.MAX_UPSTREAMS,
        "MAX_BATCH": abi.MAX_BATCH,
        "MAX_WINDOW": abi.MAX_WINDOW,
        "MAX_BACKENDS": abi.MAX_BACKENDS,
        "MAX_POOLS": abi.MAX_POOLS,
        "NEAR": abi.NEAR,
        "NEAR_WAYS": abi.NEAR_WAYS,
        "MARKS": abi.MARKS,
        "BUCKETS": abi.BUCKETS,
        "STRIDE": abi.STRIDE,
        "WEIGHT": abi.WEIGHT,
        "MAX_LENGTH": framing.MAX_LENGTH,
        "MAX_HEAD": abi.MAX_HEAD,
        "MAX_KEY": abi.MAX_KEY,
        "TABLE": abi.TABLE,
        "MAX_TABLE": abi.MAX_TABLE,
        "MAX_EDITS": abi.MAX_EDITS,
        "MAX_TAPS": abi.MAX_TAPS,
        "SAMPLE": abi.SAMPLE,
        "WORDS": abi.WORDS,
        "VACANT": abi.VACANT,
        "MAX_TESTS": abi.MAX_TESTS,
    }
    assert abi.MAX_WINDOW == framing.MAX_WINDOW
    assert (abi.MAX_KEY, abi.TABLE) == (routing.MAX_KEY, maglev.PLACES)


# --- buckets ----------------------------------------------------------------------------------------------


def limit_us(index: int) -> int:
    return round(bucket_limit(index) * 1e6)


def test_each_bucket_starts_where_the_one_before_it_ends(headers: Headers) -> None:
    last = headers.bucket(HIGHEST)
    assert last < abi.BUCKETS
    assert limit_us(last) == HIGHEST + 1
    start = 0
    for index in range(last + 1):
        assert headers.bucket(start) == index
        assert headers.bucket(limit_us(index) - 1) == index
        start = limit_us(index)


@given(st.integers(0, HIGHEST) | st.integers(0, 32).map(lambda bits: (1 << bits) - 1))
@example(0)
def test_a_duration_lies_below_the_limit_of_its_bucket_only(headers: Headers, us: int) -> None:
    index = headers.bucket(us)

    assert us < limit_us(index)
    assert index == 0 or us >= limit_us(index - 1)
