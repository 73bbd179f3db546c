"""What RxNN's callbacks print, count, save, upload and stop."""

from unittest.mock import MagicMock, Mock

import pytest
import torch

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training import callbacks
from rxnn.training.bml import AutoregressiveTrainer
from rxnn.training.callbacks import (
    ModelSaveCallback,
    PrintAccuracyCallback,
    PrintLossCallback,
    TokenCounterCallback,
)
from rxnn.training.dataset import AutoregressiveLMDataset
from sqat.errors import CheckpointError, ConfigError


@pytest.fixture
def train(small_model, stories, tokenizer):
    """Train a small model for an epoch or more, with some callbacks."""

    def run(*callbacks, epochs=1, **options):
        model = small_model()
        data = AutoregressiveLMDataset(stories, tokenizer, max_seq_len=19)
        trainer = AutoregressiveTrainer(
            model, "cpu", dataset=data, validation_dataset=data, callbacks=callbacks, **options
        )
        trainer(epochs, batch_size=9, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3))

    return run


def validate(callback, model, losses):
    for epoch, loss in enumerate(losses):
        callback.on_validation_end(model, epoch, loss, {})


@pytest.mark.parametrize(
    ("padding_as_target", "training", "validation"),
    [
        (False, "real tokens", "real tokens"),
        (True, "padding counted, router loss added, as RxNN", "padding counted, as RxNN"),
    ],
)
def test_printed_losses_say_what_they_count(train, capsys, padding_as_target, training, validation):
    train(PrintLossCallback(batch_log_interval=2, batches_per_epoch=3), padding_as_target=padding_as_target)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Epoch 0, batch 2 / 3: training loss ")
    assert first.endswith(f" ({training})")
    assert second.startswith("Epoch 0: validation loss ")
    assert second.endswith(f" ({validation})")


def test_accuracy_is_printed_with_and_without_padding(capsys):
    PrintAccuracyCallback().on_validation_end(None, 4, 1.0, {"real_accuracy": 61.234, "padded_accuracy": 70.126})
    expected = "Epoch 4: validation accuracy 61.23% (real tokens), 70.13% (padding counted, as RxNN)\n"
    assert capsys.readouterr().out == expected


def test_token_counter_counts_real_tokens_and_its_limit_stops_training(train, stories, tokenizer, capsys):
    counter = TokenCounterCallback()
    train(counter, epochs=2)
    expected = 2 * sum(min(len(tokenizer.encode(text)), 19) for text in stories)
    assert counter.total_tokens == expected
    assert f"Total tokens: {expected:,}" in capsys.readouterr().out
    counter = TokenCounterCallback(limit=200, batch_log_interval=1)
    train(counter, epochs=5)
    assert 200 <= counter.total_tokens < 200 + 9 * 19
    assert "the limit of 200 tokens is reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenCounterCallback(limit=0), "limit is 0"),
        (lambda: TokenCounterCallback(batch_log_interval=0), "batch_log_interval is 0"),
        (lambda: ModelSaveCallback(".", max_keep=0), "max_keep is 0, but must be at least 1"),
        (lambda: ModelSaveCallback(".", push_to_hub=True), "hub_model_id is None"),
        (lambda: ModelSaveCallback(".", push_to_hub=True, hub_model_id="a/b/c"), "hub_model_id is 'a/b/c'"),
    ],
)
def test_unusable_arguments(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


class TestSaving:
    def test_keeps_the_newest_of_the_best_and_the_last(self, small_model, tmp_path):
        callback = ModelSaveCallback(tmp_path / "saved", max_keep=2)
        model = small_model()
        for epoch, loss in enumerate([float("nan"), 2.0, 2.5, 1.5]):  # NaN is not a better loss
            with torch.no_grad():
                model.model.head.bias.fill_(loss)
            callback.on_validation_end(model, epoch, loss, {})
        callback.on_training_end(model)
        names = sorted(path.name for path in (tmp_path / "saved").iterdir())
        assert names == ["epoch_1_val_loss_2.0000", "epoch_3_val_loss_1.5000", "final_model"]
        loaded = ExperimentalAttentionTransformer.from_pretrained(tmp_path / "saved" / names[0])
        assert loaded.model.head.bias[0] == 2.0

    def test_an_older_runs_card_does_not_stay_and_a_failed_save_is_an_error(
        self, small_model, train, tmp_path, monkeypatch
    ):
        for arguments, text in (({}, "2 query heads"), ({"att_num_query_groups": 1}, "1 query heads")):
            ModelSaveCallback(tmp_path).on_training_end(small_model(**arguments))
            assert text in (tmp_path / "final_model" / "README.md").read_text()
        monkeypatch.setattr("sqat.checkpoint.model_files.save_file", Mock(side_effect=OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            train(ModelSaveCallback(tmp_path))


class TestUploads:
    @pytest.fixture
    def hub(self, monkeypatch):
        """The messages of the uploads that arrived; those in `hub.failing` do not."""
        arrived = type("Hub", (list,), {"failing": frozenset()})()

        def upload(folder, repo_id, message, *, private, token):
            assert (folder / "model.safetensors").is_file()
            assert (repo_id, private, token) == ("somebody/model", True, "secret")
            if message in arrived.failing:
                raise CheckpointError(f"{folder} cannot be uploaded")
            arrived.append(message)

        monkeypatch.setattr(callbacks, "upload", upload)
        return arrived

    @pytest.fixture
    def callback(self, tmp_path):
        def make(**options):
            hub = {"push_to_hub": True, "hub_model_id": "somebody/model", "private_repo": True, "hf_token": "secret"}
            return ModelSaveCallback(tmp_path, **{**hub, **options})

        return make

    @pytest.mark.parametrize(
        ("options", "messages"),
        [
            ({}, ["Epoch 0 - Val loss 3.0000", "Epoch 1 - Val loss 2.0000", "Final model"]),
            ({"push_checkpoint_weights": False, "final_commit_message": "Done"}, ["Done"]),
        ],
    )
    def test_checkpoints_and_final_model(self, hub, callback, small_model, options, messages):
        saving = callback(**options)
        validate(saving, small_model(), (3.0, 2.0))
        saving.on_training_end(small_model())
        assert hub == messages
        assert "secret" not in repr(saving)

    def test_training_survives_a_hub_that_refuses_everything(self, hub, train, callback, tmp_path, capsys):
        hub.failing = MagicMock()
        hub.failing.__contains__.return_value = True
        train(callback(), epochs=2)
        assert hub == []
        ExperimentalAttentionTransformer.from_pretrained(tmp_path / "final_model")
        assert f"Upload failed: {tmp_path / 'final_model'} cannot be uploaded" in capsys.readouterr().out
