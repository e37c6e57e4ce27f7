from __future__ import annotations

from kvasir.engine.machine import read_cpuinfo

CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2 GHz
flags\t\t: fpu avx2 amx_tile
processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def test_cpuinfo_is_read_for_the_first_cpu() -> None:
    assert read_cpuinfo(CPUINFO) == (
        "Some CPU @ 2 GHz",
        frozenset({"fpu", "avx2", "amx_tile"}),
    )
    assert read_cpuinfo("Features : asimd sve\n")[1] == {"asimd", "sve"}
    assert read_cpuinfo("") == ("", frozenset())
