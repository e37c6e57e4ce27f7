"""What a model takes, what the machine has, which dtype it gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic_models import config_of, random_weights, write_folder

from kvasir.core.errors import ConfigError, DoesNotFit
from kvasir.model import memory
from kvasir.model.config_json import spec_from_config
from kvasir.model.dtype import for_cpu, pick_dtype
from kvasir.model.files import open_model
from kvasir.model.memory import GIB, MemoryNeed

LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096,
    "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131_072,
}  # fmt: skip


def need(**changes: int) -> MemoryNeed:
    options = {
        "dtype_bytes": 2, "kv_token_bytes": 2 * 32 * 8 * 128 * 2, "step_tokens": 512,
        "sampled_rows": 16,
    }  # fmt: skip
    return memory.estimate(spec_from_config(LLAMA_8B), **(options | changes))


def test_a_known_model_has_its_known_sizes() -> None:
    assert memory.parameter_count(spec_from_config(LLAMA_8B)) == 8_030_261_248
    assert need().weights_bytes == 2 * 8_030_261_248
    assert need(dtype_bytes=4).weights_bytes == 4 * 8_030_261_248
    assert need().window_bytes == 16 * GIB


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_count_is_that_of_the_files(tmp_path: Path, family: str) -> None:
    config = config_of(family)
    spec = spec_from_config(config)
    n_values = sum(array.size for array in random_weights(spec).values())
    assert memory.parameter_count(spec) == n_values
    model = open_model(write_folder(tmp_path, config))
    assert model.parameter_bytes(torch.float32) == 4 * n_values


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    total = need().fixed_bytes + GIB
    memory.check_fits(need(), dtype="bfloat16", available=total, kv_bytes=GIB)
    with pytest.raises(
        DoesNotFit, match=r"14\.96 GiB weights \(bfloat16\).*1\.00 GiB KV"
    ) as caught:
        memory.check_fits(need(), dtype="bfloat16", available=total - 1, kv_bytes=GIB)
    assert "--dtype" not in str(caught.value)
    with pytest.raises(DoesNotFit, match="--dtype bfloat16"):
        memory.check_fits(need(dtype_bytes=4), dtype="float32", available=total, kv_bytes=GIB)


def test_the_summary_has_the_numbers() -> None:
    line = memory.summary(need(), dtype="bfloat16", available=24 * GIB, kv_bytes=4 * GIB)
    assert "14.96 GiB weights (bfloat16)" in line
    assert "4.00 GiB KV (32,768 tokens of 128.0 KiB)" in line
    assert "24.00 GiB available" in line


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_limits_of_control_groups_hold_at_every_level(tmp_path: Path) -> None:
    group(tmp_path, {})
    group(tmp_path / "outer", {"memory.max": "1000\n", "memory.current": "700\n"})
    group(tmp_path / "outer/inner", {"memory.max": "max\n", "memory.current": "600\n"})
    assert memory._cgroup_free(tmp_path, ["/outer/inner"]) == [300]
    (tmp_path / "outer/memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert memory._cgroup_free(tmp_path, ["/outer/inner"]) == [450]
    assert memory._cgroup_free(tmp_path, ["/other"]) == []


def test_limits_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    group(tmp_path / "memory/a", {"memory.limit_in_bytes": "500", "memory.usage_in_bytes": "600"})
    group(tmp_path / "memory", {"memory.limit_in_bytes": str(2**63 - 4096)})
    assert memory._cgroup_free(tmp_path, ["/a"]) == [0]


def test_this_machine_has_memory() -> None:
    assert 2**20 < memory.available_bytes() < 2**50


def test_dtype_by_what_the_cpu_computes_fast() -> None:
    assert for_cpu(frozenset({"amx_bf16", "avx2"})).dtype is torch.bfloat16
    assert for_cpu(frozenset({"avx512_bf16"})).name == "bfloat16"
    slow = for_cpu(frozenset({"avx2", "avx512_f"}))
    assert (slow.dtype, slow.name) == (torch.float32, "float32")
    assert "amx_bf16" in slow.reason
    assert pick_dtype(torch.device("cpu")).dtype in (torch.bfloat16, torch.float32)
    assert pick_dtype(torch.device("cpu"), "float16").dtype is torch.float16
    with pytest.raises(ConfigError, match="int8"):
        pick_dtype(torch.device("cpu"), "int8")


@pytest.mark.parametrize(("computes", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_dtype_on_a_gpu(monkeypatch: pytest.MonkeyPatch, computes: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: computes)
    assert pick_dtype(torch.device("cuda")).name == expected
