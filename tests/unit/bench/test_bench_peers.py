"""The command: its options, which engines take part, whose turn it is, HTTP, and the outcome."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bench_models import gguf_model

from kvasir.bench import arms as arms_module
from kvasir.bench import http as bench_http
from kvasir.bench import peers, run
from kvasir.bench.arms import Plan, arms, pool_gib
from kvasir.bench.demand import demands
from kvasir.bench.options import Options
from kvasir.bench.process import WorkerFailed, environment, only_kvasir
from kvasir.bench.results import Sample
from kvasir.bench.workload import FULL, QUICK, make, tokens_needed
from kvasir.core.errors import ConfigError, DoesNotFit
from kvasir.kernels.native import library
from kvasir.model.native_forward import layer_shapes

QUICK_PROMPTS = make(range(tokens_needed(QUICK)), ([1], [2]), QUICK)  # type: ignore[arg-type]

PYTHON = sys.executable  # before a test puts a stand-in there

# A stand-in for an interpreter with an engine: answers at fixed speeds, and notes its turn.
INTERPRETER = """\
#!{python} -S
import json, sys, os
with open({log!r}, "a") as log:
    log.write(os.path.basename(__file__) + "\\n")
for line in sys.stdin:
    m = json.loads(line)
    n, op = m.get("n_tokens"), m["op"]
    if op == {dies_at!r}:
        sys.exit("broken")
    value = {{
        "answer": {{"first_s": 1.0, "total_s": 2.0, "tokens": [7] * (n or 0), "reused_tokens": 0}},
        "answer_all": {{"total_s": 2.0, "tokens": [[7] * (n or 0)] * len(m.get("prompts", [])),
                        "reused_tokens": 0}},
        "about": {{"versions": {{"engine": "1"}}, "notes": ["a note"]}},
        "memory": 2**20,
    }}.get(op)
    print(json.dumps({{"ok": True, "value": value}}), flush=True)
"""


def interpreter(folder: Path, name: str, *, dies_at: str = "") -> str:
    path = folder / name
    log = str(folder / "turns")
    path.write_text(INTERPRETER.format(python=PYTHON, log=log, dies_at=dies_at))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def plan(tmp_path: Path, **changes: object) -> Plan:
    files = gguf_model(tmp_path / "m.gguf", "llama")
    made = Plan(
        files=files,
        cache=tmp_path / "cache",
        checkpoint=tmp_path / "checkpoint",
        workload=QUICK_PROMPTS,
        dtype="bfloat16",
        threads=2,
        llama_python=sys.executable,
        vllm_python=sys.executable,
        flash_attention=(False,),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


# --- options --------------------------------------------------------------------------------------


def parse(*argv: str, env: dict[str, str] | None = None) -> Options:
    return peers.parse(argv, env or {})


def test_defaults_are_those_of_a_recorded_run() -> None:
    options = parse()
    assert options.engines == ("kvasir", "transformers", "llama.cpp", "vllm")
    assert (options.repeats, options.sizes, options.dtype) == (3, FULL, "bfloat16")
    assert options.flash_attention == (False, True)
    assert parse("--llama-flash-attention", "on").flash_attention == (True,)
    assert options.llama_python == options.vllm_python == sys.executable
    assert options.text is None
    assert options.out.parent == options.home / "bench"


def test_quick_is_small_and_once_unless_repeats_are_given() -> None:
    assert (parse("--quick").repeats, parse("--quick").sizes) == (1, QUICK)
    assert parse("--quick", "--repeats", "2").repeats == 2


def test_the_environment_names_the_text_and_the_interpreters(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").touch()
    env = {
        "KVASIR_TEST_DATA": str(tmp_path),
        "KVASIR_BENCH_LLAMA_PYTHON": "other-python",
        "KVASIR_BENCH_VLLM_PYTHON": "third-python",
    }
    options = parse(env=env)
    assert options.text == tmp_path / "books" / "a.txt"
    assert options.llama_python == "other-python"
    assert options.vllm_python == "third-python"
    assert parse("--vllm-python", "p", env=env).vllm_python == "p"
    assert parse("--text", "b.txt", "--llama-python", "p", env=env).text == Path("b.txt")


@pytest.mark.parametrize(
    "argv",
    [
        ("--engines", "sglang"),
        ("--engines", ","),
        ("--repeats", "0"),
        ("--threads", "-1"),
        ("--timeout", "nan"),
        ("--kv-gib", "-1"),
    ],
)
def test_values_that_do_not_do_are_refused_by_name(argv: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=argv[0]):
        parse(*argv)


def test_the_published_command_names_no_folder() -> None:
    command = peers.published_command(
        ["--model", "/home/me/m.gguf", "--out=/tmp/o.json", "--quick", "--text", "a b.txt"]
    )
    assert command == "kvasir bench peers --model m.gguf --out=o.json --quick --text 'a b.txt'"


# --- arms -----------------------------------------------------------------------------------------


def names(found: list[arms_module.Arm]) -> list[tuple[str, bool]]:
    return [(arm.name, not arm.skipped) for arm in found]


def test_llama_runs_the_file_as_given_and_like_for_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms_module, "why_no_llama", lambda python: "")
    found = list(arms(plan(tmp_path, flash_attention=(False, True)), ("kvasir", "llama.cpp")))
    assert names(found) == [
        ("kvasir", True),
        ("llama.cpp Q4_1", True),
        ("llama.cpp BF16", True),
        ("llama.cpp Q4_1 FA", True),
        ("llama.cpp BF16 FA", True),
    ]
    assert found[0].setup.weights == str(tmp_path / "checkpoint")
    assert found[1].setup.weights == str(tmp_path / "m.gguf")
    assert found[2].setup.weights == str(tmp_path / "cache" / "model-bf16.gguf")
    assert Path(found[2].setup.weights).is_file()
    assert [arm.setup.flash_attention for arm in found] == [False, False, False, True, True]
    assert not any(str(tmp_path) in str(arm.settings) for arm in found)


def test_an_engine_that_is_not_there_stays_in_the_report_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = str(tmp_path / "no-such-python")
    monkeypatch.setattr(arms_module.importlib.util, "find_spec", lambda name: None)
    found = list(arms(plan(tmp_path, llama_python=nowhere), ("transformers", "llama.cpp")))
    assert names(found) == [("transformers", False), ("llama.cpp", False)]
    assert "not installed" in found[0].skipped
    assert "does not run" in found[1].skipped
    lacking = interpreter(tmp_path, "lacking")
    Path(lacking).write_text(f"#!{PYTHON} -S\nraise ImportError('llama_cpp is not here')\n")
    (lacks,) = arms(plan(tmp_path, llama_python=lacking), ("llama.cpp",))
    assert "llama_cpp is not here" in lacks.skipped


def test_vllm_runs_the_checkpoint_in_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms_module, "why_no_vllm", lambda python: "")
    (found,) = arms(plan(tmp_path, vllm_python="their-python"), ("vllm",))
    assert (found.name, found.skipped, found.python) == ("vLLM", "", "their-python")
    assert (found.setup.engine, found.setup.weights) == ("vllm", str(tmp_path / "checkpoint"))
    assert found.setup.kv_gib > 0
    assert found.per_shape
    assert found.env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert found.env["VLLM_CACHE_ROOT"].startswith(str(tmp_path / "cache"))
    assert str(tmp_path) not in str(found.settings)


def test_without_vllm_its_column_says_why(tmp_path: Path) -> None:
    lacking = interpreter(tmp_path, "lacking")
    Path(lacking).write_text(f"#!{PYTHON} -S\nraise ImportError('vllm is not here')\n")
    (lacks,) = arms(plan(tmp_path, vllm_python=lacking), ("vllm",))
    assert "vllm is not here" in lacks.skipped
    assert "--vllm-python" in lacks.skipped
    (nowhere,) = arms(plan(tmp_path, vllm_python=str(tmp_path / "none")), ("vllm",))
    assert "the interpreter for vLLM does not run" in nowhere.skipped


def test_weights_that_llama_cannot_have_are_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms_module, "why_no_llama", lambda python: "")
    base = plan(tmp_path)
    sliding = replace(base.files, spec=replace(base.files.spec, sliding_window=(8, 8)))
    found = list(arms(replace(base, files=sliding), ("llama.cpp",)))
    assert names(found) == [("llama.cpp Q4_1", True), ("llama.cpp BF16", False)]
    assert "sliding window" in found[1].skipped


def test_the_pool_holds_what_is_there_at_once(tmp_path: Path) -> None:
    spec = plan(tmp_path).files.spec
    full = make(range(tokens_needed(FULL)), ([1], [2]), FULL)  # type: ignore[arg-type]
    token_bytes = 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * 2
    tokens = pool_gib(spec, full, "bfloat16") * 2**30 / token_bytes
    assert 16 * 1128 * 1.2 < tokens < 16 * 1128 * 1.5
    assert pool_gib(spec, full, "float32") == 2 * pool_gib(spec, full, "bfloat16")


# --- turns ----------------------------------------------------------------------------------------


def test_engines_take_turns_and_a_failure_stays_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pythons = [
        interpreter(tmp_path, "one"),
        interpreter(tmp_path, "two", dies_at="answer_all"),
        interpreter(tmp_path, "three"),
    ]
    (base,) = arms(plan(tmp_path), ("transformers",))
    columns = [
        run._Column(replace(base, name=Path(python).name, python=python)) for python in pythons
    ]
    columns.append(run._Column(replace(base, name="absent", skipped="not here")))
    said: list[str] = []
    run._take_turns(columns, QUICK_PROMPTS, parse("--quick", "--repeats", "2"), None, said.append)

    turns = (tmp_path / "turns").read_text().split()
    assert turns == ["one", "two", "three", "two", "three", "one"]
    one, two, three, absent = (column.report() for column in columns)
    assert one.failures == three.failures == absent.failures == ()
    assert [f.partition(":")[0] for f in two.failures] == ["repeat 1", "repeat 2"]
    assert "during 'answer_all': broken" in two.failures[0]
    assert (one.versions, one.notes) == ({"engine": "1"}, ("a note",))
    assert absent.skipped == "not here"
    figures = [s.figure for s in columns[0].samples if s.repeat == 1]
    assert figures[0] == "start"
    assert {"prefill@128", "decode@128", "serial", "concurrent", "memory_all"} <= set(figures)
    # what the failing engine had said before stays
    assert "serial" in {s.figure for s in columns[1].samples}
    assert not columns[3].samples


def test_an_arm_adds_to_the_environment_of_its_worker(tmp_path: Path) -> None:
    path = Path(interpreter(tmp_path, "one"))
    path.write_text(path.read_text().replace('"a note"', 'os.environ["X"]'))
    (base,) = arms(plan(tmp_path), ("transformers",))
    column = run._Column(replace(base, python=str(path), env={"X": "seen"}))
    run._take_turns([column], QUICK_PROMPTS, parse("--quick"), None, lambda text: None)
    assert column.report().notes == ("seen",)


def test_ours_is_also_measured_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base,) = arms(plan(tmp_path), ("kvasir",))
    column = run._Column(replace(base, python=interpreter(tmp_path, "ours")))
    sample = Sample(arm="kvasir", repeat=0, figure="http", value=0.5)
    monkeypatch.setattr(run, "_over_http", lambda *_: [sample])
    run._take_turns([column], QUICK_PROMPTS, parse("--quick"), None, lambda text: None)
    assert column.samples[-1] is sample


def test_more_formats_of_ours_are_columns_of_their_own(tmp_path: Path) -> None:
    formats = parse("--formats", "int4/int8, bf16/int8").formats
    assert formats == (("bf16", "int8"), ("int4", "int8"))
    main, *others = arms(plan(tmp_path, formats=formats), ("kvasir",))
    assert (main.name, main.setup.weights_format, main.setup.kv_dtype) == ("kvasir", "auto", "auto")
    assert [arm.name for arm in others] == ["kvasir bf16/int8", "kvasir int4/int8"]
    assert [(a.setup.weights_format, a.setup.kv_dtype) for a in others] == [
        ("bf16", "int8"),
        ("int4", "int8"),
    ]
    if library.best() is None:
        assert not main.demands
        assert all(arm.skipped and not arm.demands for arm in others)
    for wrong in ("int8", "int3/int8", "bf16/int4", "a/b/c"):
        with pytest.raises(ConfigError, match="int8/int8"):
            parse("--formats", wrong)


@pytest.mark.skipif(library.best() is None, reason="no native kernels here")
def test_a_token_demands_weights_and_kv_or_its_products(tmp_path: Path) -> None:
    (arm, fewer) = arms(plan(tmp_path, formats=(("int8", "int8"),)), ("kvasir",))
    sizes = plan(tmp_path).workload.sizes
    assert set(arm.demands) == {
        *(f"prefill@{n}" for n in sizes.read),
        *(f"decode@{n}" for n in sizes.decode),
    }
    spec = plan(tmp_path).files.spec
    n = sizes.decode[0]
    whole, half = arm.demands[f"decode@{n}"].read_bytes, fewer.demands[f"decode@{n}"].read_bytes
    assert 1.8 < whole / half < 2.0  # scales are read beside int8 KV
    kv = 4 * spec.n_layers * spec.n_kv_heads * spec.head_dim * (n + sizes.decode_tokens // 2 + 1)
    panels = [-(-out // 32) * 32 * -(-inner // 32) * 32 for out, inner in layer_shapes(spec)]
    head = -(-spec.vocab_size // 32) * 32 * -(-spec.hidden // 32) * 32
    assert whole == 2 * (spec.n_layers * sum(panels) + head) + kv
    n = sizes.read[0]
    read = arm.demands[f"prefill@{n}"]
    parameters = spec.n_layers * sum(out * inner for out, inner in layer_shapes(spec))
    assert read.linear_operations * n == 2 * (parameters * n + spec.vocab_size * spec.hidden)
    pairs = sum(range(1, n + 1))
    assert read.attention_operations * n == pairs * 4 * spec.n_layers * spec.n_heads * spec.head_dim


@pytest.mark.skipif(library.best() is None, reason="no native kernels here")
def test_a_window_bounds_what_a_token_demands(tmp_path: Path) -> None:
    made = plan(tmp_path)
    spec, sizes = made.files.spec, made.workload.sizes
    n = sizes.read[0]
    windowed = replace(spec, sliding_window=(4,) * spec.n_layers)
    whole, part = (demands(s, sizes, "bf16", "bf16") for s in (spec, windowed))
    per_pair = 4 * spec.n_layers * spec.n_heads * spec.head_dim
    pairs = 1 + 2 + 3 + 4 * (n - 3)
    assert part[f"prefill@{n}"].attention_operations * n == pytest.approx(per_pair * pairs)
    n = sizes.decode[0]
    token_bytes = 4 * spec.n_layers * spec.n_kv_heads * spec.head_dim
    fewer = whole[f"decode@{n}"].read_bytes - part[f"decode@{n}"].read_bytes
    assert fewer == token_bytes * (n + sizes.decode_tokens // 2 + 1 - 4)


def test_formats_want_native_kernels_in_bfloat16(tmp_path: Path) -> None:
    made = plan(tmp_path, formats=(("int8", "int8"),), dtype="float32")
    main, other = arms(made, ("kvasir",))
    assert not main.demands
    assert not main.skipped
    assert other.skipped


def test_a_limit_that_cannot_be_measured_costs_its_shares_only() -> None:
    class Short:
        def sample(self) -> None:
            raise DoesNotFit("no memory for it")

    said: list[str] = []
    run._sample_limits(Short(), said.append)  # type: ignore[arg-type]
    assert said == ["WARNING: no memory for it"]


def test_the_command_writes_the_report_and_says_whether_all_went_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole of ``main`` but for the engines: a real model file, checkpoint, text and report."""
    monkeypatch.delenv(peers.TEST_DATA, raising=False)
    gguf_model(tmp_path / "m.gguf", "llama", window=512)
    monkeypatch.setattr(arms_module.sys, "executable", interpreter(tmp_path, "theirs"))
    out = tmp_path / "new" / "out.json"
    argv = [
        *("--quick", "--engines", "transformers", "--model", str(tmp_path / "m.gguf")),
        *("--home", str(tmp_path / "home"), "--out", str(out)),
    ]
    assert peers.main(argv) == 0
    data = json.loads(out.read_text())
    assert data["model"] == "m"
    assert data["text"] == "made, seed 1"
    assert {s["arm"] for s in data["samples"]} == {"transformers"}
    assert str(tmp_path) not in out.read_text()
    assert "prefill, 128 tokens" in capsys.readouterr().out

    monkeypatch.setattr(
        arms_module.sys, "executable", interpreter(tmp_path, "sick", dies_at="load")
    )
    assert peers.main(argv) == 1


# --- HTTP -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(status: int, lines: list[bytes]) -> Iterator[tuple[int, list[dict[str, object]]]]:
    """A server that answers every POST with ``lines``; yields its port and what it was asked."""
    asked: list[dict[str, object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            for line in lines:
                self.wfile.write(line + b"\n\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            del format, args

    server = http.server.HTTPServer((bench_http.HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_first_token_is_the_first_chunk_with_a_choice() -> None:
    lines = [b": wait", b'data: {"choices": []}', b'data: {"choices": [{"text": "a"}]}']
    with answering(200, lines) as (port, asked):
        assert bench_http.first_token_s(port, [3, 1, 4], 10) > 0
    assert asked[0]["prompt"] == [3, 1, 4]
    assert (asked[0]["max_tokens"], asked[0]["stream"]) == (1, True)


@pytest.mark.parametrize(
    ("status", "lines", "said"),
    [
        (429, [b'{"error": "come back"}'], "429 and no token.*come back"),
        (200, [b"data: [DONE]"], "200 and no token"),
        (200, [b'data: {"choices": []}'], "200 and no token"),
        (200, [b"data: {nonsense"], "stream broke"),
    ],
)
def test_no_token_is_a_failure(status: int, lines: list[bytes], said: str) -> None:
    with answering(status, lines) as (port, _), pytest.raises(WorkerFailed, match=said):
        bench_http.first_token_s(port, [1], 10)


def served(tmp_path: Path, model: Path) -> contextlib.AbstractContextManager[int]:
    settings = {"model": str(model), "home": str(tmp_path / "home"), "kv_gib": "0.001"}
    env = environment(os.environ, threads=1, import_path=only_kvasir(tmp_path))
    return bench_http.served(sys.executable, settings, env=env, cwd=tmp_path, timeout_s=60)


def test_the_real_server_gives_a_first_token(tmp_path: Path) -> None:
    gguf_model(tmp_path / "m.gguf", "llama")
    with served(tmp_path, tmp_path / "m.gguf") as port:
        assert bench_http.first_token_s(port, [9, 8, 7], 30) > 0
        with pytest.raises(WorkerFailed, match="answered 400"):
            bench_http.first_token_s(port, [9] * 1000, 30)
    with pytest.raises(WorkerFailed, match="stream broke"):  # it has gone with the block
        bench_http.first_token_s(port, [9], 5)


def test_a_server_that_does_not_start_is_a_failure(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerFailed, match="ended with code 1 while starting"),
        served(tmp_path, tmp_path / "none.gguf"),
    ):
        pass
