"""Settings changed anywhere: runs in YAML, overrides, logs, and the files of stock checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
import yaml
from fuzzing import bounded, changed_bytes, changed_json, fuzz, json_files, little_memory
from hypothesis import given
from hypothesis import strategies as st

from sqat.compare.plan import ComparePlan
from sqat.config import ModelConfig
from sqat.convert.files import read_config
from sqat.convert.plan import plan_conversion
from sqat.convert.tokenizer import StockTokenizer
from sqat.data.tokenizer import Tokenizer
from sqat.run_config import DataConfig, RunConfig, TrainConfig, read_yaml, with_overrides
from sqat.train.callbacks import JsonlLog
from sqat.train.state import TrainState
from sqat.uptrain_config import UptrainConfig

RUN = {
    "model": {"preset": "sqat-mm", "num_layers": 3, "window": None},
    "data": {"source": "stories:50", "limit": 5, "mode": "rows"},
    "train": {"epochs": None, "max_steps": 5, "learning_rate": 2e-3, "clip_norm": 1.0, "device": "cpu"},
}
NAMES = tuple(
    {**ModelConfig.__dataclass_fields__, **DataConfig.__dataclass_fields__, **TrainConfig.__dataclass_fields__}
)
PLAN = {
    "name": "few",
    "family": "micro",
    "variants": ["gqa", {"sw-sqa": {"variant": "sqa", "window": 64}}],
    "reference": "gqa",
    "seeds": [0, 1],
    "model": {"num_layers": 2},
    "timing": {"rounds": 1},
}
YAML_PARTS = (
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!python/object/apply:os.system [id]",
    b"2001-99-99",
    b"!!binary x",
    b"? [",
    b"- ",
)


@st.composite
def yaml_files(draw: Any, valid: Any, names: tuple[str, ...]) -> bytes:
    try:
        text = yaml.safe_dump(draw(changed_json(valid, names)), allow_unicode=True).encode()
    except (yaml.YAMLError, UnicodeEncodeError, ValueError):  # values that YAML or Python cannot write
        text = yaml.safe_dump(valid).encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(YAML_PARTS)) + text[at:]
    return draw(changed_bytes(text)) if draw(st.integers(0, 3)) == 0 else text


@pytest.mark.parametrize(("kind", "valid"), [(RunConfig, RUN), (ComparePlan, PLAN)], ids=["run", "plan"])
def test_yaml(tmp_path: Path, kind: Any, valid: Any) -> None:
    @fuzz(40)
    @given(yaml_files(valid, NAMES))
    def check(data: bytes) -> None:
        path = tmp_path / "run.yaml"
        path.write_bytes(data)
        with bounded():
            config = kind.from_dict(read_yaml(path))
            assert yaml.safe_dump(json.loads(json.dumps(config.to_dict())))

    with little_memory():
        check()


def test_overrides() -> None:
    values = st.one_of(
        st.text(max_size=30),
        st.sampled_from(
            ("9" * 5000, "1e999", ".nan", "-.inf", "[" * 100, "{a: &x [*x]}", "2001-99-99", "!!set", "*a", "0x_")
        ),
    )
    names = st.one_of(st.sampled_from(NAMES), st.text(max_size=10))

    @fuzz(60)
    @given(st.sampled_from(("model", "data", "train", "", "model.")), names, values, st.sampled_from(("=", "", "==")))
    def check(section: str, name: str, value: str, equals: str) -> None:
        with bounded():
            RunConfig.from_dict(with_overrides(RUN, [f"{section}.{name}{equals}{value}"]))
        with bounded():
            UptrainConfig.from_dict(
                with_overrides({}, ["model.path=x", "model.tokens=5", f"{section}.{name}{equals}{value}"])
            )

    with little_memory():
        check()


def test_metrics_log(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.5}).encode() for step in range(4)]
    trainer: Any = SimpleNamespace(state=TrainState(step=2))

    @fuzz(60)
    @given(json_files(json.loads(lines[0])), changed_bytes(b"\n".join(lines) + b"\n"), st.booleans())
    def check(line: bytes, whole: bytes, one_line: bool) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"\n".join([lines[0], line.replace(b"\n", b" "), lines[3]]) + b"\n" if one_line else whole)
        with bounded():
            JsonlLog(path).on_start(trainer)
            assert all(json.loads(kept)["step"] <= 2 for kept in path.read_text().splitlines())

    with little_memory():
        check()


def test_stock_config(tmp_path: Path) -> None:
    """Configurations of the architectures that `sqat convert` reads."""
    sizes = {"vocab_size": 307, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 12, "head_dim": 10}
    kinds = [transformers.Qwen3Config, transformers.LlamaConfig, transformers.MixtralConfig, transformers.SmolLM3Config]
    valid = [
        json.loads(kind(**sizes, num_key_value_heads=4, pad_token_id=0).to_json_string(use_diff=False))
        for kind in kinds
    ]
    names = ("auto_map", "quantization_config", "attn_implementation", "dtype", "rope_scaling", "layer_types")

    @fuzz(20)
    @given(st.sampled_from(valid).flatmap(lambda values: json_files(values, names)))
    def check(data: bytes) -> None:
        (tmp_path / "config.json").write_bytes(data)
        with bounded():
            plan_conversion(read_config(tmp_path), query_heads=4)

    with little_memory():
        check()


def test_stock_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    valid = {name: (tmp_path / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    names = ("auto_map", "tokenizer_class", "chat_template", "extra_special_tokens", "added_tokens_decoder")
    change = st.sampled_from(sorted(valid)).flatmap(
        lambda name: st.tuples(st.just(name), json_files(json.loads(valid[name]), names))
    )

    @fuzz(10)
    @given(change)
    def check(change: tuple[str, bytes]) -> None:
        name, data = change
        (tmp_path / name).write_bytes(data)
        try:
            with bounded():
                StockTokenizer(tmp_path).encode_documents(["Once upon a time, [EOS] there was", "a é\n\n"])
        finally:
            (tmp_path / name).write_bytes(valid[name])

    with little_memory():
        check()
