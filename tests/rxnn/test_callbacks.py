"""What the card's callbacks print, count, save and stop."""

import pytest
import torch

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training import model_saving
from rxnn.training.bml import AutoregressiveTrainer
from rxnn.training.callbacks import (
    EarlyStoppageCallback,
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
        return model

    return run


class TestPrinting:
    def test_losses_say_what_they_count(self, train, capsys):
        train(PrintLossCallback(batch_log_interval=2, batches_per_epoch=3))
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("Epoch 0, batch 2 / 3: training loss 5.")
        assert lines[0].endswith("(real tokens)")
        assert lines[1].startswith("Epoch 0: validation loss 5.")
        assert lines[1].endswith("(real tokens)")

    def test_so_do_the_cards(self, train, capsys):
        train(PrintLossCallback(batch_log_interval=3), padding_as_target=True)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("Epoch 0, batch 3: training loss ")
        assert lines[0].endswith("(padding counted, router loss added, as RxNN)")
        assert lines[1].endswith("(padding counted, as RxNN)")

    def test_accuracy(self, capsys):
        metrics = {"real_accuracy": 61.234, "card_accuracy": 70.126}
        PrintAccuracyCallback().on_validation_end(None, 4, 1.0, metrics)
        expected = "Epoch 4: validation accuracy 61.23% (real tokens), 70.13% (padding counted, as RxNN)\n"
        assert capsys.readouterr().out == expected

    @pytest.mark.parametrize("make", [PrintLossCallback, PrintAccuracyCallback])
    def test_joint_mode(self, make):
        with pytest.raises(ConfigError, match="joint_mode is True"):
            make(joint_mode=True)


class TestTokenCounter:
    def test_counts_real_tokens(self, train, stories, tokenizer, capsys):
        counter = TokenCounterCallback()
        train(counter, epochs=2)
        expected = 2 * sum(min(len(tokenizer.encode(text)), 19) for text in stories)
        assert counter.get_total_tokens() == expected
        assert f"Tokens in all: {expected:,}" in capsys.readouterr().out

    def test_limit(self, train, capsys):
        counter = TokenCounterCallback(limit=200, batch_log_interval=1)
        train(counter, epochs=5)
        assert 200 <= counter.get_total_tokens() < 200 + 9 * 19
        assert "the limit of 200 tokens is reached" in capsys.readouterr().out

    def test_unusable(self):
        with pytest.raises(ConfigError, match="limit is 0"):
            TokenCounterCallback(limit=0)
        with pytest.raises(ConfigError, match="batch_log_interval is 0"):
            TokenCounterCallback(batch_log_interval=0)


class TestEarlyStoppage:
    def test_stops_on_a_plateau(self, capsys):
        callback = EarlyStoppageCallback(num_plateau_epochs=2)
        losses = [3.0, 2.0, 2.5, 1.9, 1.9, 2.0]
        assert [callback.on_validation_end(None, i, loss, {}) for i, loss in enumerate(losses)] == [False] * 5 + [True]
        assert "no better validation loss than 1.9000 in 2 epochs" in capsys.readouterr().out

    def test_unusable(self):
        with pytest.raises(ConfigError, match="num_plateau_epochs is 0"):
            EarlyStoppageCallback(0)


class TestSaving:
    def test_better_ones_and_the_last(self, small_model, tmp_path):
        callback = ModelSaveCallback(tmp_path / "saved", max_keep=2)
        model = small_model()
        for epoch, loss in enumerate([3.0, 2.0, 2.5, 1.5]):
            with torch.no_grad():
                model.model.head.bias.fill_(loss)
            callback.on_validation_end(model, epoch, loss, {})
        callback.on_training_end(model)
        names = sorted(path.name for path in (tmp_path / "saved").iterdir())
        assert names == ["epoch_1_val_loss_2.0000", "epoch_3_val_loss_1.5000", "final_model"]
        loaded = ExperimentalAttentionTransformer.from_pretrained(tmp_path / "saved" / names[0])
        assert loaded.model.head.bias[0] == 2.0

    def test_the_same_name_again(self, small_model, tmp_path):
        callback = ModelSaveCallback(tmp_path, save_checkpoint_after_n_batches=1, max_keep=1)
        for _ in range(2):
            callback.on_batch_end(small_model(), 0, None, {})
        assert [path.name for path in tmp_path.iterdir()] == ["epoch_0_batch_1"]

    def test_within_an_epoch(self, train, tmp_path):
        train(ModelSaveCallback(tmp_path, save_checkpoint_after_n_batches=2, max_keep=1), epochs=2)
        assert [path.name for path in tmp_path.glob("*batch*")] == ["epoch_1_batch_2"]

    def test_not_a_number_is_not_better(self, small_model, tmp_path):
        callback = ModelSaveCallback(tmp_path / "saved")
        callback.on_validation_end(small_model(), 0, float("nan"), {})
        assert not (tmp_path / "saved").exists()

    def test_an_older_runs_card_does_not_stay(self, small_model, tmp_path):
        for arguments, text in (({}, "2 query heads"), ({"att_num_query_groups": 1}, "1 query heads")):
            ModelSaveCallback(tmp_path).on_training_end(small_model(**arguments))
            assert text in (tmp_path / "final_model" / "README.md").read_text()

    def test_a_failed_save_is_an_error(self, train, tmp_path, monkeypatch):
        def fail(*_: object, **__: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("sqat.checkpoint.model_files.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            train(ModelSaveCallback(tmp_path))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_keep": 0}, "max_keep is 0, but must be at least 1"),
            ({"save_checkpoint_after_n_batches": 0}, "save_checkpoint_after_n_batches is 0"),
            ({"push_to_hub": True}, "hub_model_id is None"),
            ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "hub_model_id is 'a/b/c'"),
            ({"use_ddp": True}, "use_ddp is True"),
        ],
    )
    def test_unusable(self, tmp_path, options, message):
        with pytest.raises(ConfigError, match=message):
            ModelSaveCallback(tmp_path, **options)


class TestUploads:
    @pytest.fixture
    def hub(self, monkeypatch):
        """The messages that arrived; `hub.failing` are those that do not."""

        class Hub(list):
            failing: set = frozenset()

        arrived = Hub()

        def upload(folder, repo_id, message, *, private, token):
            assert (folder / "model.safetensors").is_file()
            assert (repo_id, private, token) == ("somebody/model", True, "secret")
            if message in arrived.failing:
                raise CheckpointError(f"{folder} cannot be uploaded")
            arrived.append(message)

        monkeypatch.setattr(model_saving, "upload", upload)
        return arrived

    @pytest.fixture
    def callback(self, tmp_path):
        def make(**options):
            hub = {"push_to_hub": True, "hub_model_id": "somebody/model", "private_repo": True, "hf_token": "secret"}
            return ModelSaveCallback(tmp_path, **{**hub, **options})

        return make

    def run(self, callback, model, losses=(3.0, 2.0)):
        for epoch, loss in enumerate(losses):
            callback.on_validation_end(model, epoch, loss, {})
        callback.on_training_end(model)

    def test_all(self, hub, callback, small_model):
        self.run(callback(), small_model())
        assert hub == ["Epoch 0 - Val loss 3.0000", "Epoch 1 - Val loss 2.0000", "Final model"]

    def test_final_model_only(self, hub, callback, small_model):
        self.run(callback(push_checkpoint_weights=False, final_commit_message="Done"), small_model())
        assert hub == ["Done"]

    def test_batch_checkpoints(self, hub, callback, small_model):
        saving = callback(save_checkpoint_after_n_batches=2, push_batch_checkpoint=True)
        saving.on_epoch_start(None, 5)
        for i in range(3):
            saving.on_batch_end(small_model(), i, None, {})
        assert hub == ["Epoch 5 - Batch 2"]

    def test_a_failed_one_is_tried_again_before_the_next(self, hub, callback, small_model, capsys):
        saving = callback()
        hub.failing = {"Epoch 0 - Val loss 3.0000"}
        saving.on_validation_end(small_model(), 0, 3.0, {})
        assert "Upload failed: " in capsys.readouterr().out
        saving.on_validation_end(small_model(), 1, 2.5, {})
        assert hub == []  # nothing overtakes it
        hub.failing = set()
        self.run(saving, small_model(), losses=(2.0,))
        checkpoints = ["Epoch 0 - Val loss 3.0000", "Epoch 1 - Val loss 2.5000", "Epoch 0 - Val loss 2.0000"]
        assert hub == [*checkpoints, "Final model"]

    def test_tried_again_at_the_end(self, hub, callback, small_model, monkeypatch, capsys):
        pauses = []

        def sleep(seconds):
            pauses.append(seconds)
            if len(pauses) == 2:
                hub.failing = set()

        monkeypatch.setattr("rxnn.training.model_saving.time.sleep", sleep)
        hub.failing = {"Epoch 1 - Val loss 2.0000"}
        self.run(callback(), small_model())
        assert hub == ["Epoch 0 - Val loss 3.0000", "Epoch 1 - Val loss 2.0000", "Final model"]
        assert pauses == list(model_saving.RETRY_PAUSES[:2])
        assert "Not uploaded" not in capsys.readouterr().out

    def test_what_waits_is_kept(self, hub, callback, small_model, tmp_path):
        hub.failing = {"Epoch 0 - Val loss 3.0000", "Epoch 1 - Val loss 2.0000", "Epoch 2 - Val loss 1.0000"}
        saving = callback(max_keep=1)
        for epoch, loss in enumerate([3.0, 2.0, 1.0]):
            saving.on_validation_end(small_model(), epoch, loss, {})
        assert len(list(tmp_path.iterdir())) == 3
        hub.failing = set()
        saving.on_validation_end(small_model(), 3, 0.5, {})
        assert [path.name for path in tmp_path.iterdir()] == ["epoch_3_val_loss_0.5000"]
        assert len(hub) == 4

    def test_the_run_survives(self, hub, train, callback, tmp_path, monkeypatch, capsys):
        class All:
            def __contains__(self, _: object) -> bool:
                return True

        hub.failing = All()
        monkeypatch.setattr(model_saving, "RETRY_PAUSES", (0, 0))
        train(callback(display_exc_trace=True), epochs=2)
        assert hub == []
        ExperimentalAttentionTransformer.from_pretrained(tmp_path / "final_model")
        output = capsys.readouterr()
        assert f"Not uploaded: {tmp_path / 'final_model'} (Final model)" in output.out
        assert "Traceback" in output.err
