"""Checkpoints changed anywhere: configuration, weights, index, progress."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzzing import bounded, changed_bytes, changed_json, fuzz, json_files, little_memory
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sqat.checkpoint import load_model, read_config
from sqat.checkpoint.rxnn_config import config_to_rxnn
from sqat.checksums import MANIFEST, check_files, write_checksums
from sqat.config import ModelConfig
from sqat.data.batches import BatchState
from sqat.data.tokenizer import Tokenizer
from sqat.generate import SamplingConfig, generate
from sqat.model import Decoder
from sqat.train.metrics import MetricsWindow
from sqat.train.state import STATE_FILE, TENSORS_FILE, TrainState, read_state, restore, state_tensors, write_state
from sqat.variants import preset

NAMES = tuple(ModelConfig.__dataclass_fields__)


def test_config_json(checkpoint: Path) -> None:
    own = json.loads((checkpoint / "config.json").read_text())
    original = config_to_rxnn(preset("sqat-mm"))

    @fuzz(300)
    @given(st.one_of(json_files(own, NAMES), json_files(original, tuple(original))))
    def check(data: bytes) -> None:
        (checkpoint / "config.json").write_bytes(data)
        with bounded():
            config, _ = read_config(checkpoint)
            assert ModelConfig.from_dict(config.to_dict()) == config

    with little_memory():
        check()


def test_a_model_is_built_of_no_config_that_its_weights_do_not_fit(checkpoint: Path) -> None:
    own = json.loads((checkpoint / "config.json").read_text())

    @fuzz(40)
    @given(changed_json(own, NAMES))
    def check(values: Any) -> None:
        (checkpoint / "config.json").write_text(json.dumps(values))
        with bounded():
            load_model(checkpoint)

    with little_memory():
        check()


@st.composite
def lists(draw: Any, valid: bytes) -> bytes:
    """A list of checksums that was changed, and three times of four has the checksum of what it is now."""
    data = draw(changed_bytes(valid))
    if draw(st.integers(0, 3)):
        names = st.sampled_from(("../a", "/dev/zero", "pipe", "a/" * 3000, "a" * 300, "\0", ".", "", "\udcff", "\r"))
        lines = names.map(lambda name: f"{'0' * 64}  {name}\n".encode("utf-8", "replace"))
        data += draw(st.one_of(st.just(b""), lines))
        rest = data.partition(b"\n")[2]
        data = f"# SHA-256 of the lines below: {hashlib.sha256(rest).hexdigest()}\n".encode() + rest
    return data


def test_list_of_checksums(checkpoint: Path) -> None:
    write_checksums(checkpoint)
    os.mkfifo(checkpoint / "pipe")
    valid = (checkpoint / MANIFEST).read_bytes()

    @fuzz(200)
    @given(lists(valid))
    def check(data: bytes) -> None:
        (checkpoint / MANIFEST).write_bytes(data)
        with bounded():
            check_files(checkpoint)
        with bounded():
            check_files(checkpoint, ["config.json"])

    with little_memory():
        check()


@st.composite
def safetensors_files(draw: Any, valid: bytes) -> bytes:
    """A weights file with its header changed as JSON, its length corrected or not; or changed as bytes."""
    if draw(st.integers(0, 2)) == 0:
        return draw(changed_bytes(valid))
    length = int.from_bytes(valid[:8], "little")
    header = json.dumps(draw(changed_json(json.loads(valid[8 : 8 + length])))).encode()
    told = draw(st.sampled_from((len(header), len(header), len(header), length, 0, 2**31, 2**63 - 1, 2**64 - 1)))
    return told.to_bytes(8, "little") + header + valid[8 + length :]


def test_safetensors(checkpoint: Path, tokenizer: Tokenizer) -> None:
    path = checkpoint / "model.safetensors"
    valid = path.read_bytes()

    @fuzz(60)
    @given(safetensors_files(valid))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with bounded():
            model = load_model(checkpoint)
            # What loads is whole, whatever its numbers, and can be asked.
            generate(model, tokenizer, "a", SamplingConfig(max_tokens=1, temperature=0))

    with little_memory():
        check()


def test_index(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate((list(tensors)[:7], list(tensors)[7:])):
        name = f"model-0000{number}.safetensors"
        save_file({key: tensors[key] for key in part}, checkpoint / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 5}, "weight_map": weight_map}
    names = ("../checkpoint/model-00000.safetensors", "/etc/passwd", "model-00000.safetensors")

    @fuzz(30)
    @given(json_files(index, names))
    def check(data: bytes) -> None:
        (checkpoint / "model.safetensors.index.json").write_bytes(data)
        with bounded():
            load_model(checkpoint)

    with little_memory():
        check()


def _trained(model: Decoder) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    return optimizer


def test_training_json(tmp_path: Path, tiny_model: Callable[..., Decoder]) -> None:
    state = TrainState(7, 70, BatchState(1, 5), 2.5, {"step": 7, "loss": 2.5, "router_load": [[0.5, 0.5]]})
    model = tiny_model()
    write_state(tmp_path, state, state_tensors(model, _trained(model), {}))
    valid = json.loads((tmp_path / STATE_FILE).read_text())

    @fuzz(150)
    @given(json_files(valid))
    def check(data: bytes) -> None:
        (tmp_path / STATE_FILE).write_bytes(data)
        with bounded():
            found = read_state(tmp_path)
            assert found.step + found.tokens + found.data.row >= 0

    with little_memory():
        check()


def test_training_tensors(tmp_path: Path, tiny_model: Callable[..., Decoder]) -> None:
    model = tiny_model()
    optimizer = _trained(model)
    window = {name: torch.ones(2) for name in ("loss", "correct", "targets", "router_loss", "grad_norm", "skipped")}
    window["clock"] = torch.ones(2, dtype=torch.float64)
    write_state(tmp_path, TrainState(1, 3), state_tensors(model, optimizer, window))
    valid = (tmp_path / TENSORS_FILE).read_bytes()

    @fuzz(30)
    @given(safetensors_files(valid))
    def check(data: bytes) -> None:
        (tmp_path / TENSORS_FILE).write_bytes(data)
        with bounded():
            _, unlogged = restore(tmp_path, model, optimizer)
            optimizer.step()  # what was restored can be gone on from
            with contextlib.suppress(KeyError, RuntimeError, TypeError, ValueError):  # for which `resume` has one error
                MetricsWindow().restore(unlogged, torch.device("cpu"))

    with little_memory():
        check()
