"""What the compiled kernels consist of, and that they keep to their memory.

The library runs on every x86-64 because instructions beyond the baseline are in regions of their
own that ``native/isa.cpp`` chooses from. Here the objects are disassembled to see that this is so;
and all kernels are driven by ``native/driver.cpp`` under sanitizers.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTENSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
    "ext-modules"
][0]
SOURCES = [ROOT / source for source in EXTENSION["sources"]]
DRIVER = [ROOT / "native" / "driver.cpp", ROOT / "native" / "driver_models.cpp"]
SANITIZED = (
    "-std=c++17", "-O1", "-g", "-fno-sanitize-recover=all", "-pthread",
    "-fsanitize=address,undefined,float-cast-overflow",
)  # fmt: skip
MODELS = "4"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="native kernels are written for x86-64"
    ),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("g++", "objdump", "nm")),
        reason="there is no g++, objdump or nm",
    ),
]

TILES = r"tdp\w+|tile\w+|ldtilecfg|sttilecfg"
BFLOAT16 = r"vdpbf16ps|vcvtne\w*bf16\w*"
BYTES = r"vpdp\w+"
WIDE_REGISTERS = r"%zmm\d+|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b"
# encoded with a VEX prefix although they do without vector registers
PLAIN_VEX = r"andn|bextr|blsi|blsmsk|blsr|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|k\w+[bwdq]"
# begin with v and are as old as the baseline, or are for hypervisors
NOT_VECTOR = (
    r"verr|verw|vmcall|vmlaunch|vmresume|vmxoff|vmxon|vmread|vmwrite|vmptrld|vmptrst|vmclear|vmfunc"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What an object must not contain: mnemonics (in full, but for the suffix of a size) and
    operands (anywhere)."""

    mnemonics: str
    operands: str = r"(?!)"

    def violations(self, code: Iterable[tuple[str, str]]) -> list[str]:
        """The instructions of ``code`` that break it."""
        mnemonic = re.compile(rf"(?:{self.mnemonics})[bwlq]?")
        operand = re.compile(self.operands)
        return [
            f"{name} {operands}".strip()
            for name, operands in code
            if mnemonic.fullmatch(name) or operand.search(operands)
        ]


BASELINE = Rule(
    rf"(?!(?:{NOT_VECTOR})[bwlq]?$)v\w+|{PLAIN_VEX}|{TILES}|xgetbv",
    rf"{WIDE_REGISTERS}|%ymm\d+|%tmm\d",
)
RULES = {
    "kernels_avx2": Rule(rf"{BFLOAT16}|{BYTES}|{TILES}", rf"{WIDE_REGISTERS}|%tmm\d"),
    "kernels_avx512": Rule(rf"{BFLOAT16}|{BYTES}|{TILES}", r"%tmm\d"),
    "kernels_avx512_bf16": Rule(TILES, r"%tmm\d"),
    "kernels_amx_emulated": Rule(TILES, r"%tmm\d"),
    "kernels_amx": Rule(r"(?!)"),
}
ASKS_THE_CPU = {"isa": {"xgetbv"}}  # what breaks the rule there, and may


def compiled(sources: Iterable[Path], flags: Iterable[str], folder: Path) -> list[Path]:
    """An object of each source; two compilers at a time, for the memory that they take."""

    def one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        command = ["g++", *flags, "-fPIC", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


def instructions(target: Path) -> Iterator[tuple[str, str]]:
    """Mnemonic and operands of each instruction of an object."""
    command = ["objdump", "-d", "--no-show-raw-insn", "-M", "att", str(target)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    prefixes = re.compile(r"^(?:(?:rep\w*|lock|bnd|notrack|data16|cs|\{\w+\}) )+")
    for line in text.splitlines():
        if found := re.match(r"\s+[0-9a-f]+:\t([\w{].+)", line):
            words = prefixes.sub("", found[1].split("<")[0].strip()).split(maxsplit=1)
            yield (*words, "")[:2] if len(words) == 1 else (words[0], words[1])


def mergeable(target: Path) -> list[str]:
    """Symbols of which the linker keeps any one of several objects' (weak and unique ones), and
    functions that run when the library is loaded, on whatever machine. The address of the C++
    runtime's own unwinder is no code."""
    command = ["nm", "-C", str(target)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line for line in lines if re.search(r" [WVu] |_GLOBAL__sub_I", line)]
    return [line for line in found if not line.endswith(" DW.ref.__gxx_personality_v0")]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The library's objects by their sources' names, compiled as the library is."""
    folder = tmp_path_factory.mktemp("objects")
    return {
        target.stem: target for target in compiled(SOURCES, EXTENSION["extra-compile-args"], folder)
    }


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver under sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    targets = compiled([*DRIVER, *SOURCES], SANITIZED, folder)
    program = folder / "driver"
    subprocess.run(["g++", *SANITIZED, *map(str, targets), "-o", str(program)], check=True)
    return program


def test_objects_keep_to_their_instruction_sets(objects: dict[str, Path]) -> None:
    assert set(RULES) <= set(objects)
    for name, target in objects.items():
        found = RULES.get(name, BASELINE).violations(instructions(target))
        assert set(found) == ASKS_THE_CPU.get(name, set()), name


def test_kernels_use_what_they_are_for(objects: dict[str, Path]) -> None:
    for name, wanted in (
        ("kernels_avx2", {"vfmadd231ps"}),
        ("kernels_avx512", {"vpmaddwd"}),
        ("kernels_avx512_bf16", {"vdpbf16ps", "vpdpbusd"}),
        ("kernels_amx_emulated", {"vdpbf16ps", "vpdpbusd"}),
        ("kernels_amx", {"tdpbf16ps", "tdpbsud", "ldtilecfg", "tilerelease"}),
    ):
        assert wanted <= {mnemonic for mnemonic, _ in instructions(objects[name])}, name


def test_nothing_of_the_kernels_is_merged_into_other_code(objects: dict[str, Path]) -> None:
    for name in RULES:
        assert mergeable(objects[name]) == [], name


WRONG = {
    "wide": "#include <immintrin.h>\n"
    "__m512 f(__m512 x, int k) { return _mm512_mask_add_ps(x, k, x, x); }",
    "vex": "float f(float x, float y) { return x * y; }",
    "bmi": "unsigned f(unsigned x, unsigned y) { return x & ~y; }",
    "tiles": 'void f() { __asm__("tdpbf16ps %tmm2, %tmm1, %tmm0"); }',
    "bfloat16": "#include <immintrin.h>\n"
    "__m512 f(__m512 x, __m512bh y) { return _mm512_dpbf16_ps(x, y, y); }",
    "bytes": "#include <immintrin.h>\n"
    "__m512i f(__m512i x, __m512i y) { return _mm512_dpbusd_epi32(x, y, y); }",
    "merged": "inline int f(int x) { return x + 1; }\nint (*g())(int) { return f; }",
    "early": "int f();\nint x = f();",
}


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    flags = ["-O1", "-mavx512f", "-mbmi", "-mavx512bf16", "-mavx512vnni"]
    for name, text in WRONG.items():
        (tmp_path / f"{name}.cpp").write_text(text)
    targets = compiled((tmp_path / f"{name}.cpp" for name in WRONG), flags, tmp_path)
    code = {target.stem: list(instructions(target)) for target in targets}
    for name in ("wide", "vex", "bmi", "tiles", "bfloat16", "bytes"):
        assert BASELINE.violations(code[name]), name
    for name in ("wide", "tiles", "bfloat16", "bytes"):
        assert RULES["kernels_avx2"].violations(code[name]), name
    for name in ("tiles", "bfloat16", "bytes"):
        assert RULES["kernels_avx512"].violations(code[name]), name
    assert RULES["kernels_avx512_bf16"].violations(code["tiles"])
    by_name = {target.stem: mergeable(target) for target in targets}
    assert {name for name, found in by_name.items() if found} == {"merged", "early"}


def test_kernels_keep_to_their_memory_and_their_bits(driver: Path) -> None:
    done = subprocess.run([driver, "0", MODELS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows computed alike" in done.stdout or "not here" in done.stdout


def test_the_sanitizers_see_a_buffer_that_is_a_row_short(driver: Path) -> None:
    done = subprocess.run(
        [driver, "0", "2", "--plant"], capture_output=True, text=True, check=False
    )
    if "rows computed alike" not in done.stdout and "heap-buffer-overflow" not in done.stderr:
        pytest.skip("this machine has none of the instruction sets")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
