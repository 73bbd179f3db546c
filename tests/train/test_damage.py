"""Damaged checkpoints: every flipped byte is found, and a run goes on from the newest one that is whole."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sqat.checkpoint import load_model
from sqat.checksums import MANIFEST
from sqat.data.tokenizer import Tokenizer
from sqat.errors import CheckpointError, ConfigError, DataError
from sqat.run_config import RunConfig
from sqat.train import Callback, Trainer, start_run
from sqat.train.checkpoints import (
    best_checkpoint,
    find_model,
    latest_checkpoint,
    list_checkpoints,
    newest_whole_checkpoint,
)
from sqat.train.state import read_state, restore, write_evaluation

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
FILES += ["training.json", "training.safetensors"]


def flip(path: Path, offset: int = -40) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `run` makes its run, once."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def config(run_config: Callable[..., RunConfig], tmp_path: Path) -> RunConfig:
    return run_config(max_steps=7, checkpoint_every=2, evaluate_every=3, keep_checkpoints=3)


@pytest.fixture
def run(config: RunConfig, finished: Path, tmp_path: Path) -> Path:
    """A run with checkpoints at steps 4, 6 and 7."""
    if not finished.exists():
        start_run(config, finished).train()
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


class TestDetection:
    def test_every_file_is_listed(self, run):
        newest = latest_checkpoint(run)
        assert sorted(path.name for path in newest.iterdir()) == sorted([*FILES, MANIFEST, "evaluation.json"])
        assert all(f"  {name}\n" in (newest / MANIFEST).read_text() for name in FILES)

    @pytest.mark.parametrize("name", [*FILES, MANIFEST])
    def test_any_flipped_byte_keeps_a_run_from_going_on(self, run, flip_bytes, name):
        *others, newest = list_checkpoints(run)
        for other in others:
            shutil.rmtree(other)
        for _ in flip_bytes(newest / name):
            with pytest.raises(CheckpointError, match=re.escape(f"{newest / name} is damaged")):
                newest_whole_checkpoint(run)
        assert newest_whole_checkpoint(run) == newest

    @pytest.mark.parametrize("name", FILES[:3] + FILES[4:])
    def test_whoever_reads_a_file_alone_sees_it_too(self, run, flip_bytes, name):
        folder = latest_checkpoint(run)
        model = load_model(folder)
        optimizer = torch.optim.AdamW(model.parameters())
        read: Callable[[Path], object] = {
            "config.json": load_model,
            "model.safetensors": load_model,
            "tokenizer.json": Tokenizer.load,
            "training.json": read_state,
            "training.safetensors": lambda folder: restore(folder, model, optimizer),
        }[name]
        error = DataError if name == "tokenizer.json" else CheckpointError
        for _ in flip_bytes(folder / name):
            with pytest.raises(error, match=re.escape(f"{folder / name} is damaged")):
                read(folder)


class TestFallback:
    @pytest.mark.parametrize("name", [*FILES, MANIFEST])
    def test_to_the_newest_whole_one_and_on_to_the_same_bits(self, config, run, caplog, name):
        expected = copy.deepcopy(load_model(latest_checkpoint(run)).state_dict())  # not the file, which is mapped
        log = (run / "metrics.jsonl").read_text()
        flip(run / "checkpoints" / "step-00000007" / name)
        with caplog.at_level(logging.WARNING):
            trainer = start_run(config, run, resume=True)
        assert trainer.state.step == 6
        aside = run / "checkpoints" / "step-00000007.damaged"
        assert re.search(rf"step-00000007/{re.escape(name)} is damaged", caplog.text)
        assert re.search(rf"This checkpoint is now {aside}; going on from .*step-00000006", caplog.text)
        trainer.train()
        torch.testing.assert_close(load_model(latest_checkpoint(run)).state_dict(), expected, rtol=0, atol=0)
        assert sorted(path.name for path in aside.iterdir()) == sorted([*FILES, MANIFEST, "evaluation.json"])
        assert [path.name for path in list_checkpoints(run)] == [f"step-0000000{n}" for n in (4, 6, 7)]
        assert [_without_times(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [
            _without_times(line) for line in log.splitlines()
        ]

    def test_a_damaged_evaluation_is_made_again(self, config, run, flip_bytes, caplog):
        newest, log = latest_checkpoint(run), (run / "metrics.jsonl").read_text()
        path = newest / "evaluation.json"
        whole, state = path.read_bytes(), read_state(newest)
        for _ in flip_bytes(path):  # of blanks between its values, some may change unseen
            with contextlib.suppress(CheckpointError):
                assert read_state(newest) == state
        path.write_bytes(whole.replace(b'"loss": ', b'"loss": 1'))
        with caplog.at_level(logging.WARNING):
            start_run(config, run, resume=True).train()
        assert "evaluation.json is damaged" in caplog.text
        assert path.read_bytes() == whole
        assert [_without_times(line) for line in (run / "metrics.jsonl").read_text().splitlines()] == [
            _without_times(line) for line in log.splitlines()
        ]

    def test_past_several_and_missing_files(self, config, run, caplog):
        flip(run / "checkpoints" / "step-00000007" / "training.safetensors")
        (run / "checkpoints" / "step-00000006" / "model.safetensors").unlink()
        with caplog.at_level(logging.WARNING):
            assert start_run(config, run, resume=True).state.step == 4
        assert "step-00000006/model.safetensors is missing, although checksums.sha256 lists it" in caplog.text
        assert "step-00000007/training.safetensors is damaged" in caplog.text
        assert [path.name for path in list_checkpoints(run)] == ["step-00000004"]

    def test_a_step_damaged_twice_is_kept_twice(self, config, run):
        for _ in range(2):
            flip(run / "checkpoints" / "step-00000007" / "training.json")
            start_run(config, run, resume=True).train()
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert names[-3:] == ["step-00000007", "step-00000007.damaged", "step-00000007.damaged-2"]

    def test_where_all_are_damaged_nothing_is_begun_anew(self, config, run):
        for checkpoint in list_checkpoints(run):
            flip(checkpoint / "model.safetensors")
        for _ in range(2):  # and a second try is no way around it
            with pytest.raises(
                CheckpointError, match=r"all checkpoints of .*step-00000007/model.safetensors is damaged"
            ):
                start_run(config, run, resume=True)
        with pytest.raises(ConfigError, match="holds a run already"):
            start_run(config, run)
        assert len(list_checkpoints(run)) == 3

    def test_one_without_a_list_is_read_unchecked_and_it_is_said(self, config, run, caplog):
        (latest_checkpoint(run) / MANIFEST).unlink()
        with caplog.at_level(logging.WARNING):
            assert start_run(config, run, resume=True).state.step == 7
        assert "step-00000007 has no checksums.sha256: read unchecked" in caplog.text


class TestBest:
    def test_one_with_a_damaged_state_is_passed_over(self, run, caplog):
        best = best_checkpoint(run)
        assert find_model(run) == best
        flip(best / "training.json", 30)
        with caplog.at_level(logging.WARNING):
            assert best_checkpoint(run) not in (best, None)
        assert f"passing over {best / 'training.json'} is damaged" in caplog.text

    def test_rotation_keeps_one_with_a_damaged_state(self, run_config, tmp_path):
        """Its weights may be the best."""
        folder = tmp_path / "rotated" / "checkpoints" / "step-00000002"

        class Damage(Callback):
            def on_step(self, trainer: Trainer) -> None:
                if trainer.state.step == 3:
                    flip(folder / "training.json")

        config = run_config(max_steps=5, checkpoint_every=1, keep_checkpoints=1)
        start_run(config, tmp_path / "rotated", callbacks=[Damage()]).train()
        assert [path.name for path in list_checkpoints(tmp_path / "rotated")] == ["step-00000002", "step-00000005"]
        load_model(folder)

    def test_damaged_weights_are_an_error_and_not_a_worse_model(self, run):
        best = best_checkpoint(run)
        flip(best / "model.safetensors")
        with pytest.raises(CheckpointError, match=re.escape(f"{best / 'model.safetensors'} is damaged")):
            load_model(find_model(run))

    def test_a_nan_loss_is_never_the_best(self, run):
        best = best_checkpoint(run)
        state = read_state(best)
        state.evaluation["loss"] = float("nan")
        write_evaluation(best, state)
        assert best_checkpoint(run) not in (best, None)


class TestTheRunsOwnFiles:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("batch_size: 5", "batch_size: 4", "train.batch_size is 5, but the run in .* has 4"),
            ("batch_size: 5", "catch_size: 5", r"config\.yaml is damaged, or of another version: .*catch_size"),
            ("batch_size: 5", "batch_size: x", r"config\.yaml is damaged, or of another version: .*batch_size is 'x'"),
            ("train:", "tra\x00n:", r"config\.yaml is not valid YAML"),
        ],
    )
    def test_a_changed_configuration(self, config, run, old, new, message):
        path = run / "config.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=message):
            start_run(config, run, resume=True)

    def test_damaged_metrics_lose_their_own_lines_only(self, config, run):
        path = run / "metrics.jsonl"
        lines = path.read_bytes().splitlines()
        lines[1] = b"\xff" + lines[1][1:]
        path.write_bytes(b"\n".join(lines) + b"\n")
        start_run(config, run, resume=True).train()
        assert path.read_bytes().splitlines() == [lines[0], *lines[2:]]


def test_a_damaged_tokenizer_in_the_cache_is_trained_again(config, tmp_path, caplog):
    whole = start_run(config, tmp_path / "one")
    (folder,) = (tmp_path / "cache" / "tokenizers").iterdir()
    flip(folder / "tokenizer.json")
    with caplog.at_level(logging.WARNING):
        again = start_run(config, tmp_path / "two")
    assert re.search(r"training the tokenizer of .* again: .*tokenizer\.json is damaged", caplog.text)
    assert again.tokenizer.fingerprint() == whole.tokenizer.fingerprint()


def _without_times(line: str) -> dict[str, object]:
    return {k: v for k, v in json.loads(line).items() if k not in ("tokens_per_second", "data_wait")}
