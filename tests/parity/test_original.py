"""Agreement with RxNN 0.1.59, the original system, on what it computed itself; tests/conformance/README.md says what
the tensors are.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sqat.checkpoint import load_model, read_config, save_model
from sqat.checkpoint.rxnn import tensors_to_rxnn
from sqat.data.batches import IGNORE, Batch
from sqat.generate import SamplingConfig, decode_tokens
from sqat.run_config import TrainConfig
from sqat.train.optim import cosine_with_warmup, make_optimizer
from sqat.train.step import TrainingLoss, train_step

HERE = Path(__file__).parents[1] / "conformance"
ELSEWHERE = Path(__file__).parents[3] / "shared" / "conformance"
CASES = {
    **dict.fromkeys(("tiny-gqa-moe", "tiny-sqa-moe", "tiny-ssqa-dense"), HERE),
    **dict.fromkeys(("gqa-moe", "mha-moe", "mqa-moe", "sqa-moe", "ssqa-moe", "xsqa-moe"), ELSEWHERE),
    **dict.fromkeys(("sqa-dense-layernorm", "sqa-dense-ungated-gelu", "xsmqa-dense"), ELSEWHERE),
}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def find(name):
    folder = CASES[name] / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(params=CASES)
def folder(request):
    return find(request.param)


@pytest.fixture
def golden(folder):
    return load_file(folder / "golden.safetensors")


@pytest.fixture
def model(folder):
    return load_model(folder)


def padded_rows(inputs):
    """The original's targets: every next token, padding included."""
    targets = torch.cat((inputs[:, 1:], torch.full_like(inputs[:, :1], IGNORE)), dim=1)
    return Batch(inputs, targets, None, None)


def test_logits(model, golden):
    torch.testing.assert_close(model(golden["input_ids"]).logits, golden["logits"], **TOLERANCE)


def test_checkpoints_go_there_and_back(folder, model, tmp_path):
    native = save_model(model, tmp_path / "native")
    again = save_model(load_model(native), tmp_path / "again", layout="rxnn")
    ours, theirs = (load_file(path / "model.safetensors") for path in (again, folder))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (again, folder))
    assert list(ours) == list(theirs)
    assert {read_config(path)[0] for path in (folder, native, again)} == {model.config}


def test_losses(model, golden):
    batch = padded_rows(golden["input_ids"])
    total, sums = TrainingLoss(model.train(), "rxnn")(batch, batch.num_targets, 1.0)
    assert model.config.is_moe == ("router_aux_loss" in golden)
    for found, expected in [
        (sums["loss"] / batch.num_targets, golden["loss_with_padding"]),
        (sums.get("router_loss", torch.zeros(1)), golden.get("router_aux_loss", torch.zeros(1))),
        (total, golden["total_loss"]),
    ]:
        torch.testing.assert_close(found.view(1), expected, **TOLERANCE)


def test_gradients(model, golden):
    batch = padded_rows(golden["input_ids"])
    TrainingLoss(model.train(), "rxnn")(batch, batch.num_targets, 1.0)[0].backward()
    found = tensors_to_rxnn({name: parameter.grad for name, parameter in model.named_parameters()}, model.config)
    expected = {name.removeprefix("grad."): gradient for name, gradient in golden.items() if name.startswith("grad.")}
    first = {name for name in found if name.startswith(("model.layers.0.", "model.embedding.", "model.head."))}
    assert first - expected.keys() == {"model.layers.0.attention.rope.inv_freq"}
    torch.testing.assert_close({name: found[name] for name in expected}, expected, **TOLERANCE)


def test_greedy_tokens(model, golden):
    expected = golden["greedy_tokens"][0].tolist()
    prompt = golden["input_ids"][0, :6].tolist()
    found = decode_tokens(model, [prompt], SamplingConfig(temperature=0, max_tokens=len(expected) - 6))
    assert [*prompt, *(int(token) for token in found)] == expected


def test_eight_training_steps():
    folder = find("sqa-moe")
    golden, model = load_file(folder / "golden.safetensors"), load_model(folder).train()
    config = TrainConfig(learning_rate=2e-3, weight_decay=0.01, decay_all=True)
    task, optimizer = TrainingLoss(model, "rxnn"), make_optimizer(model, config)
    losses = []
    for step, inputs in enumerate(golden["train.batches"]):
        batch = padded_rows(inputs)
        for group in optimizer.param_groups:
            group["lr"] = cosine_with_warmup(step, peak=config.learning_rate, total_steps=8)
        sums = train_step(task, [batch], optimizer, total_targets=batch.num_targets, clip_norm=1.0)
        losses.append(sums["loss"] / batch.num_targets + task.router_loss_weight * sums["router_loss"])
    torch.testing.assert_close(torch.stack(losses).double(), golden["train.losses"], **TOLERANCE)
    torch.testing.assert_close(model.eval()(golden["input_ids"]).logits, golden["train.logits_after"], **TOLERANCE)
