import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqat.convert import convert, plan_conversion
from sqat.convert.files import read_model
from sqat.convert.tokenizer import StockTokenizer
from sqat.convert.uptrain import start_uptraining
from sqat.errors import CheckpointError, ConfigError
from sqat.train import Callback
from sqat.train.checkpoints import find_model, list_checkpoints
from sqat.uptrain_config import UptrainConfig


class InterruptAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, trainer):
        if trainer.state.step == self.step:
            trainer.interrupt("a test")


@pytest.fixture
def folders(stock_folder, tmp_path, monkeypatch):
    """A pretrained model, a converted one, and text."""

    def make(name="qwen3", **changes):
        monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
        teacher = stock_folder(name, **changes)
        model = read_model(teacher)
        student = tmp_path / "converted"
        convert(model, plan_conversion(model.config, query_heads=4, method="mean")).save_pretrained(student)
        for path in teacher.glob("token*"):
            (student / path.name).write_bytes(path.read_bytes())
        texts = [f"The cat number {n} sat on mat {n * 7}. It was happy, and so it purred." for n in range(210)]
        (tmp_path / "text.txt").write_text("\n\n".join(texts))
        return student, teacher, tmp_path / "text.txt"

    return make


def config(student, teacher, text, **changes):
    values = {
        "model": {"path": str(student), "teacher": teacher and str(teacher), "tokens": 1500, "context_length": 23},
        "data": {"source": str(text)},
        "train": {"batch_size": 5, "precision": "float32", "tensorboard": False, "log_every": 3, "device": "cpu"},
    }
    values["train"]["learning_rate"] = 3e-3
    for name, value in changes.items():
        section, _, field = name.partition("__")
        values[section][field] = value
    return UptrainConfig.from_dict(values)


def log(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_resumed_is_uninterrupted_to_the_bit(name, folders, tmp_path):
    settings = config(*folders(name, attention_dropout=0.1))
    start_uptraining(settings, tmp_path / "whole").train()
    stopped = start_uptraining(settings, tmp_path / "parts", callbacks=[InterruptAt(4)])
    stopped.train()
    assert list_checkpoints(tmp_path / "parts")[-1].name == "step-00000004"
    resumed = start_uptraining(settings, tmp_path / "parts", resume=True)
    assert (resumed.state.step, resumed.total_steps) == (4, stopped.total_steps)
    resumed.train()
    ends = [list_checkpoints(tmp_path / run)[-1] for run in ("whole", "parts")]
    assert ends[0].name == ends[1].name
    for file in ("model.safetensors", "training.safetensors", "training.json"):
        assert (ends[0] / file).read_bytes() == (ends[1] / file).read_bytes(), file
    whole, parts = (log(tmp_path / run, "train")[-1] for run in ("whole", "parts"))
    assert [parts[key] for key in ("loss", "kl", "grad_norm")] == [whole[key] for key in ("loss", "kl", "grad_norm")]


def test_the_student_comes_closer_to_its_teacher(folders, tmp_path):
    """The teacher is random: what is learnt from text leads away from it, so KL has to weigh much more."""
    settings = config(*folders(), model__tokens=6000, model__kl_weight=50.0)
    start_uptraining(settings, tmp_path / "run").train()
    kl = [line["kl"] for line in log(tmp_path / "run", "train")]
    assert kl[-1] < 0.7 * kl[0]


def test_the_student_learns_from_text(folders, tmp_path):
    settings = config(*folders(), model__tokens=6000, train__evaluate_first=True)
    trainer = start_uptraining(settings, tmp_path / "run")
    trainer.train()
    losses = [line["loss"] for line in log(tmp_path / "run", "validation")]
    assert losses[-1] < losses[0]
    assert abs(trainer.state.tokens - 6000) < 2 * 6000 / trainer.total_steps  # to the nearest step


def test_checkpoints_are_stock_checkpoints(folders, tmp_path, rows):
    student, teacher, text = folders()
    trainer = start_uptraining(config(student, teacher, text), tmp_path / "run")
    trainer.train()
    folder = find_model(tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.num_attention_heads, model.config.head_dim) == (4, 10)
    trainer.student.model.eval()
    torch.testing.assert_close(model(rows).logits, trainer.student.model(rows).logits)
    assert (
        AutoTokenizer.from_pretrained(folder)("cat").input_ids
        == AutoTokenizer.from_pretrained(teacher)("cat").input_ids
    )


def test_a_step_without_numbers_is_skipped(folders, tmp_path):
    trainer = start_uptraining(config(*folders(), train__log_every=1), tmp_path / "run")
    weight, before = trainer.student.model.lm_head.weight, []

    def spoil(grad):
        if trainer.state.step == 2:
            before.append(weight.detach().clone())
            return grad * float("nan")
        if trainer.state.step == 3:
            assert torch.equal(weight, before[0])
        return grad

    weight.register_hook(spoil)
    trainer.train()
    assert (len(before), trainer.state.skipped_steps, trainer.state.skipped_in_a_row) == (1, 1, 0)
    train = log(tmp_path / "run", "train")
    assert [line["skipped_steps"] for line in train[:4]] == [0, 0, 1, 1]
    assert all(line["kl"] > 0 for line in train if line["loss"] is not None)


def test_an_infinite_kl_is_left_out_of_the_log(folders, tmp_path):
    trainer = start_uptraining(config(*folders(), train__log_every=2), tmp_path / "run")
    forward = trainer.task.forward

    def spoiled(*arguments):
        loss, sums = forward(*arguments)
        if trainer.state.step == 2:
            return loss * float("inf"), {**sums, "kl": sums["kl"] * float("inf")}
        return loss, sums

    trainer.task.forward = spoiled
    trainer.train()
    assert trainer.state.skipped_steps == 1
    assert all(0 < line["kl"] < 10 for line in log(tmp_path / "run", "train"))


def test_a_damaged_checkpoint_is_passed_over(folders, tmp_path, flip_bytes, caplog):
    settings = config(*folders(), train__checkpoint_every=3)
    start_uptraining(settings, tmp_path / "run").train()
    *_, older, newest = list_checkpoints(tmp_path / "run")
    for name, read in {"model.safetensors": read_model, "tokenizer.json": StockTokenizer}.items():
        flips = flip_bytes(newest / name)
        next(flips)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            read(newest)
    resumed = start_uptraining(settings, tmp_path / "run", resume=True)
    assert f"{newest}.damaged; going on from {older}" in caplog.text
    assert resumed.state.step == int(older.name[5:])
    resumed.train()
    assert list_checkpoints(tmp_path / "run")[-1] == newest


def test_runs_are_not_mixed_up(folders, tmp_path, stock_folder):
    student, teacher, text = folders()
    run = tmp_path / "run"
    start_uptraining(config(student, teacher, text), run).train()
    with pytest.raises(ConfigError, match=r"holds a run already: resume it"):
        start_uptraining(config(student, teacher, text), run)
    with pytest.raises(ConfigError, match=r"model.kl_weight is 0.5, but the run in .* has 1.0"):
        start_uptraining(config(student, teacher, text, model__kl_weight=0.5), run, resume=True)
    trainer = start_uptraining(config(teacher, None, text), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"is of another model than this run's: qwen3 with Heads.query=4"):
        trainer.load_weights(list_checkpoints(run)[-1])


def test_rows_are_no_longer_than_the_models_take(folders, tmp_path, stock_folder):
    student, teacher, text = folders()
    with pytest.raises(ConfigError, match=r"--context\) is 62, but must be at most 61, the max_position_embeddings of"):
        start_uptraining(config(student, teacher, text, model__context_length=62), tmp_path / "run")
    short = stock_folder("qwen3", "short", max_position_embeddings=29)
    with pytest.raises(ConfigError, match=r"is 31, but must be at most 29, .* of the model in .*short"):
        start_uptraining(config(student, short, text, model__context_length=31), tmp_path / "run")


def test_vocabularies_have_to_be_one(folders, tmp_path, stock_folder):
    student, _, text = folders()
    other = stock_folder("llama", "other", vocab_size=311)
    with pytest.raises(ConfigError, match=r"with a vocab_size of 311, but must have the student's: 307"):
        start_uptraining(config(student, other, text), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__tokens": 0}, "StudentConfig.tokens is 0, but must be at least 1"),
        ({"model__kl_weight": -1.0}, "StudentConfig.kl_weight is -1.0, but must be at least 0"),
        ({"model__context_length": 1}, "StudentConfig.context_length is 1, but must be at least 2"),
        ({"data__tokenizer": "x"}, "DataConfig.tokenizer is 'x', but must be null: the checkpoint's own is used"),
        ({"data__mode": "rows"}, "DataConfig.mode is 'rows', but must be \"packed\""),
        ({"train__max_steps": 5}, "TrainConfig.max_steps is 5, but must be null: model.tokens decides"),
        ({"train__max_tokens": 5}, "TrainConfig.max_tokens is 5, but must be null: model.tokens decides"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config("student", "teacher", "text", **changes)


def test_defaults_are_gentler_than_from_scratch():
    assert UptrainConfig.from_dict({"model": {"path": "x", "tokens": 5}}).train.learning_rate == 3e-4
