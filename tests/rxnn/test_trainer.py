"""RxNN's trainer: the original's losses and metrics on request, correct ones otherwise."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.bml import AutoregressiveTrainer
from rxnn.training.callbacks import TrainerCallback
from rxnn.training.dataset import AutoregressiveLMDataset
from rxnn.training.scheduler import get_transformer_lr_scheduler
from sqat.data.tokens import TokenFile
from sqat.errors import ConfigError, TrainingError
from sqat.train.loss import router_loss

STEPS = Path(__file__).resolve().parents[3] / "shared" / "conformance" / "sqa-moe"


class Recorder(TrainerCallback):
    """Everything that a trainer tells; `stop` names the hook that asks it to stop."""

    def __init__(self, stop=""):
        self.stop, self.hooks, self.losses, self.batches, self.validation = stop, [], [], [], []

    def told(self, hook):
        self.hooks.append(hook)
        return hook == self.stop

    def on_training_start(self, trainer):
        self.told("start")

    def on_epoch_start(self, model, epoch):
        self.told(f"epoch {epoch}")

    def on_batch_end(self, model, batch_idx, loss, batch):
        self.losses.append(float(loss))
        self.batches.append(batch)
        return self.told(f"batch {batch_idx}")

    def on_validation_end(self, model, epoch, val_loss, val_metrics):
        self.validation.append((val_loss, val_metrics))
        return self.told(f"validation {epoch}")

    def on_epoch_end(self, model, epoch):
        return self.told(f"end of epoch {epoch}")

    def on_training_end(self, model):
        self.told("end")


def dataset_of(rows, vocab_size):
    """Rows of token ids, padded with 0, as a data set of their length."""
    documents = [row[row != 0].numpy() for row in rows]
    offsets = np.cumsum([0, *map(len, documents)])
    lengths = np.ones(len(documents), np.int64)
    tokens = TokenFile(Path(), np.concatenate(documents), offsets, lengths, vocab_size, len(documents))
    return AutoregressiveLMDataset(tokens, max_seq_len=rows.shape[1])


@pytest.fixture
def data(stories, tokenizer):
    return AutoregressiveLMDataset(stories, tokenizer, max_seq_len=19)


def adamw(model, lr=2e-3):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)


@pytest.mark.skipif(not STEPS.is_dir(), reason=f"{STEPS} is not here")
def test_eight_steps_as_the_original():
    model = ExperimentalAttentionTransformer.from_pretrained(STEPS)
    golden = load_file(STEPS / "golden.safetensors")
    recorder = Recorder()
    trainer = AutoregressiveTrainer(
        model, "cpu", 193, callbacks=[recorder], use_moe_aux_loss=True, padding_as_target=True, router_loss="rxnn"
    )
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    for rows in golden["train.batches"]:
        trainer(epochs=1, batch_size=3, dataset=dataset_of(rows, 193), optimizer=optimizer, scheduler=scheduler)
    assert recorder.losses == pytest.approx(golden["train.losses"].tolist(), rel=1e-5, abs=1e-5)
    with torch.no_grad():
        logits = model.eval()(golden["input_ids"])
    torch.testing.assert_close(logits, golden["train.logits_after"], rtol=1e-5, atol=1e-5)


class TestLosses:
    @pytest.mark.parametrize("as_card", [False, True], ids=["real targets by default", "padding counted as the card"])
    def test_shown_losses_are_what_their_label_says(self, small_model, stories, tokenizer, as_card):
        data = AutoregressiveLMDataset(stories, tokenizer, max_seq_len=40)
        model, options = small_model(moe=True), {"padding_as_target": True, "router_loss": "rxnn"} if as_card else {}
        options |= {"batch_size": len(data), "validation": data, "use_moe_aux_loss": True}
        recorder = run(model, data, lr=0.0, **options)  # the model stays as it is
        ids = torch.stack([row["input_ids"] for row in data])
        with torch.no_grad():
            output = model.model(ids)
        logits, targets = output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        counted = torch.ones_like(targets, dtype=torch.bool) if as_card else targets != 0
        loss = F.cross_entropy(logits[counted], targets[counted]).item()
        accuracy = 100 * (logits.argmax(-1) == targets)[counted].float().mean().item()
        router = 0.01 * router_loss(output.router, "rxnn").item() if as_card else 0.0
        assert recorder.losses == pytest.approx([loss + router], rel=1e-5)
        [(val_loss, metrics)] = recorder.validation
        kind = "padded" if as_card else "real"
        assert (val_loss, metrics["loss"], metrics[f"{kind}_loss"]) == pytest.approx((loss,) * 3, rel=1e-5)
        assert metrics["accuracy"] == metrics[f"{kind}_accuracy"] == pytest.approx(accuracy, rel=1e-5)
        assert metrics["label"] == ("padding counted, as RxNN" if as_card else "real tokens")
        assert metrics["real_loss"] > metrics["padded_loss"]

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({}, "none"),
            ({"use_moe_aux_loss": True}, "balanced"),
            ({"use_moe_aux_loss": True, "router_loss": "rxnn"}, "rxnn"),
            ({"use_moe_aux_loss": True, "router_loss": "card"}, "rxnn"),
        ],
    )
    def test_router_loss(self, small_model, options, kind):
        trainer = AutoregressiveTrainer(small_model(moe=True), "cpu", moe_aux_loss_scale=0.03, **options)
        assert (trainer.task.router_loss, trainer.task.router_loss_weight) == (kind, 0.03)


def run(model, data, *callbacks, epochs=1, batch_size=10, lr=2e-3, validation=None, **options):
    """Train a model; returns what the first callback, or else a recorder, has seen."""
    callbacks = callbacks or (Recorder(),)
    trainer = AutoregressiveTrainer(model, "cpu", callbacks=list(callbacks), **options)
    trainer(epochs, batch_size, dataset=data, validation_dataset=validation, optimizer=adamw(model, lr))
    return callbacks[0]


class TestLoop:
    def test_hooks_in_order(self, small_model, data):
        recorder = run(small_model(), data, epochs=2, validation=data)
        batches = ["batch 0", "batch 1", "batch 2"]
        epochs = [[f"epoch {i}", *batches, f"validation {i}", f"end of epoch {i}"] for i in range(2)]
        assert recorder.hooks == ["start", *epochs[0], *epochs[1], "end"]

    @pytest.mark.parametrize("hook", ["batch 1", "validation 0", "end of epoch 0"])
    def test_stops_when_asked(self, small_model, data, hook):
        asking, other = Recorder(stop=hook), Recorder()
        run(small_model(), data, asking, other, epochs=2, validation=data)
        assert asking.hooks == other.hooks
        assert asking.hooks[-4:] == [asking.hooks[-4], "validation 0", "end of epoch 0", "end"]
        assert ("batch 2" in asking.hooks) == (hook != "batch 1")

    def test_all_rows_count_in_an_order_of_their_own(self, small_model, data):
        recorder = run(small_model(), data, epochs=2)
        assert [len(batch["input_ids"]) for batch in recorder.batches] == [10, 10, 7] * 2
        rows = torch.cat([batch["input_ids"] for batch in recorder.batches]).tolist()
        first, second = rows[: len(data)], rows[len(data) :]
        assert sorted(first) == sorted(second)
        assert first != second

    def test_batches_are_the_data_sets_rows(self, small_model, stories, tokenizer):
        data = AutoregressiveLMDataset(stories, tokenizer, max_seq_len=40)
        recorder = run(small_model(), data)
        expected = {tuple(row["input_ids"].tolist()): row for row in data}
        for batch in recorder.batches:
            for i, ids in enumerate(batch["input_ids"].tolist()):
                for name, tensor in expected[tuple(ids)].items():
                    assert torch.equal(batch[name][i], tensor)

    def test_accumulated_batches_count_as_one(self, small_model, data, tokenizer):
        models = [small_model() for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        for model, options in zip(models, [{"batch_size": 9}, {"batch_size": 3}], strict=True):
            torch.manual_seed(3)
            trainer = AutoregressiveTrainer(model, "cpu", gradient_accumulation_steps=9 // options["batch_size"])
            trainer(epochs=1, dataset=data, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **options)
        torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-4, atol=1e-6)

    def test_scheduler_steps_with_the_optimizer(self, small_model, data):
        model = small_model()
        optimizer = adamw(model)
        scheduler = get_transformer_lr_scheduler(optimizer, 100)
        trainer = AutoregressiveTrainer(model, "cpu", gradient_accumulation_steps=2)
        trainer(epochs=2, batch_size=5, dataset=data, optimizer=optimizer, scheduler=scheduler)
        assert scheduler.last_epoch == 2 * 3

    def test_learns(self, small_model, stories, tokenizer):
        data = AutoregressiveLMDataset(stories, tokenizer, max_seq_len=40)
        model, options = small_model(moe=True, ff_dropout=0.1), {"use_amp": True, "dtype": torch.bfloat16}
        recorder = run(model, data, epochs=5, lr=2e-2, validation=data, use_moe_aux_loss=True, **options)
        assert recorder.validation[-1][0] < 0.5 * recorder.validation[0][0]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())

    def test_same_seed_same_run(self, small_model, data):
        runs = []
        for _ in range(2):
            torch.manual_seed(11)
            runs.append(run(small_model(ff_dropout=0.1), data).losses)
        assert runs[0] == runs[1]

    def test_nan_loss_is_an_error(self, small_model, data):
        model = small_model()
        with torch.no_grad():
            model.model.head.bias[7] = math.nan
        with pytest.raises(TrainingError, match=r"the loss is nan at batch .*; a lower learning rate"):
            run(model, data)


class TestTensorBoard:
    def test_scalars(self, small_model, data, tmp_path):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        options = {"log_dir": str(tmp_path / "logs"), "tensorboard_interval": 2}
        recorder = run(small_model(), data, epochs=2, batch_size=7, validation=data, **options)
        events = accumulator.EventAccumulator(str(tmp_path / "logs"))
        events.Reload()
        scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
        steps = (2, 4, 6, 8)
        assert scalars["Loss/train"] == [(i, pytest.approx(recorder.losses[i - 1])) for i in steps]
        assert scalars["Perplexity/train"] == [(i, pytest.approx(math.exp(recorder.losses[i - 1]))) for i in steps]
        tokens = np.cumsum([int(batch["attention_mask"].sum()) for batch in recorder.batches])
        assert scalars["Processed tokens"] == [(i, tokens[i - 1]) for i in steps]
        for name, values in {
            "Loss/Valid": [loss for loss, _ in recorder.validation],
            "Perplexity/Valid": [math.exp(loss) for loss, _ in recorder.validation],
            "Accuracy/Valid": [metrics["accuracy"] for _, metrics in recorder.validation],
        }.items():
            assert scalars[name] == [(i, pytest.approx(value)) for i, value in enumerate(values)]

    def test_without_tensorboard_log_dir_is_refused(self, small_model, data, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"log_dir is .*, but must be left out while tensorboard is missing"):
            run(small_model(), data, log_dir=str(tmp_path / "logs"))


class TestUnusable:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"vocab_size": 10_000}, "vocab_size is 10000, but must be 307, the model's"),
            ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16, but must be left out, or used with use_amp=True"),
            ({"use_amp": True, "dtype": torch.float16}, "dtype is torch.float16, but must be torch.bfloat16"),
            ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, but must be at least 1"),
            ({"tensorboard_interval": 0}, "tensorboard_interval is 0, but must be at least 1"),
            ({"router_loss": "switch"}, "router_loss is 'switch', but must be one of balanced, rxnn"),
        ],
    )
    def test_arguments(self, small_model, options, message):
        with pytest.raises(ConfigError, match=message):
            AutoregressiveTrainer(small_model(), "cpu", **options)

    def test_arguments_of_a_call(self, small_model, data):
        model = small_model()
        trainer = AutoregressiveTrainer(model, "cpu")
        for options, message in (
            ({"batch_size": 0}, "batch_size is 0"),
            ({"dataset": None}, "dataset or optimizer is None, but must be given here or when the trainer is made"),
            ({"optimizer": None}, "dataset or optimizer is None"),
        ):
            arguments = {"epochs": 1, "batch_size": 3, "dataset": data, "optimizer": adamw(model)}
            with pytest.raises(ConfigError, match=message):
                trainer(**{**arguments, **options})

    def test_models(self, small_model, data):
        message = r"dataset has a vocabulary of 307, but must .* tokenizer, which has at most 41"
        with pytest.raises(ConfigError, match=message):
            run(small_model(vocab_size=41), data)
