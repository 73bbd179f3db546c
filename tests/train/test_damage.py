"""Damaged checkpoints: every flipped byte is found, and a run goes on from the newest one that is whole."""

import contextlib
import copy
import re
import shutil

import pytest
import torch

from sqat.checkpoint import load_model
from sqat.checksums import MANIFEST
from sqat.errors import CheckpointError, ConfigError
from sqat.train.checkpoints import best_checkpoint, find_model, list_checkpoints
from sqat.train.checkpoints import newest_whole_checkpoint as newest_whole
from sqat.train.state import read_state, write_evaluation

FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
FILES += ["training.json", "training.safetensors"]


def flip(path, offset=-40):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


SETTINGS = {"checkpoint_every": 2, "evaluate_every": 3, "keep_checkpoints": 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where `run` makes its run, once."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(start, finished, tmp_path):
    """A run with checkpoints at steps 4, 6 and 7."""
    if not finished.exists():
        start(finished, **SETTINGS).train()
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def resume(start, run):
    """`resume()`: the trainer that goes on with the run."""
    return lambda: start(resume=True, **SETTINGS)


class TestDetection:
    def test_every_file_is_listed(self, run):
        newest = list_checkpoints(run)[-1]
        assert sorted(path.name for path in newest.iterdir()) == sorted([*FILES, MANIFEST, "evaluation.json"])
        assert all(f"  {name}\n" in (newest / MANIFEST).read_text() for name in FILES)

    @pytest.mark.parametrize("name", FILES)
    def test_any_flipped_byte_keeps_a_run_from_going_on(self, run, flip_bytes, name):
        *others, newest = list_checkpoints(run)
        for other in others:
            shutil.rmtree(other)
        for _ in flip_bytes(newest / name):
            with pytest.raises(CheckpointError, match=re.escape(f"{newest / name} is damaged")):
                newest_whole(run)
        assert newest_whole(run) == newest


class TestFallback:
    def test_a_run_goes_on_from_the_newest_whole_checkpoint_to_the_same_bits(self, resume, run, log, caplog):
        expected = copy.deepcopy(load_model(list_checkpoints(run)[-1]).state_dict())  # not the file, which is mapped
        lines = log()
        flip(run / "checkpoints" / "step-00000007" / "training.safetensors")
        trainer = resume()
        assert trainer.state.step == 6
        aside = run / "checkpoints" / "step-00000007.damaged"
        assert re.search(r"step-00000007/training\.safetensors is damaged", caplog.text)
        assert re.search(rf"This checkpoint is now {aside}; going on from .*step-00000006", caplog.text)
        trainer.train()
        torch.testing.assert_close(load_model(list_checkpoints(run)[-1]).state_dict(), expected, rtol=0, atol=0)
        assert sorted(path.name for path in aside.iterdir()) == sorted([*FILES, MANIFEST, "evaluation.json"])
        assert [path.name for path in list_checkpoints(run)] == [f"step-0000000{n}" for n in (4, 6, 7)]
        assert log() == lines

    def test_a_damaged_evaluation_is_made_again(self, resume, run, log, flip_bytes, caplog):
        newest, lines = list_checkpoints(run)[-1], log()
        path = newest / "evaluation.json"
        whole, state = path.read_bytes(), read_state(newest)
        for _ in flip_bytes(path):  # of blanks between its values, some may change unseen
            with contextlib.suppress(CheckpointError):
                assert read_state(newest) == state
        path.write_bytes(whole.replace(b'"loss": ', b'"loss": 1'))
        resume().train()
        assert "evaluation.json is damaged" in caplog.text
        assert path.read_bytes() == whole
        assert log() == lines

    def test_several_damaged_and_missing_files_are_passed_over(self, resume, run, caplog):
        flip(run / "checkpoints" / "step-00000007" / "training.safetensors")
        (run / "checkpoints" / "step-00000006" / "model.safetensors").unlink()
        assert resume().state.step == 4
        assert "step-00000006/model.safetensors is missing, although checksums.sha256 lists it" in caplog.text
        assert "step-00000007/training.safetensors is damaged" in caplog.text
        assert [path.name for path in list_checkpoints(run)] == ["step-00000004"]

    def test_a_step_damaged_twice_is_kept_twice(self, resume, run):
        for _ in range(2):
            flip(run / "checkpoints" / "step-00000007" / "training.json")
            resume().train()
        names = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert names[-3:] == ["step-00000007", "step-00000007.damaged", "step-00000007.damaged-again"]

    def test_nothing_begins_anew_where_all_are_damaged(self, start, resume, run):
        for checkpoint in list_checkpoints(run):
            flip(checkpoint / "model.safetensors")
        for _ in range(2):  # and a second try is no way around it
            with pytest.raises(CheckpointError, match=r"all checkpoints of .*step-00000007/model.safetensors is dam"):
                resume()
        with pytest.raises(ConfigError, match="holds a run already"):
            start(**SETTINGS)
        assert len(list_checkpoints(run)) == 3

    def test_a_checkpoint_without_checksums_is_read_with_a_warning(self, resume, run, caplog):
        (list_checkpoints(run)[-1] / MANIFEST).unlink()
        assert resume().state.step == 7
        assert "step-00000007 has no checksums.sha256: read unchecked" in caplog.text


class TestBest:
    def test_rotation_keeps_a_damaged_state(self, start, at, tmp_path):
        """Its weights may be the best."""
        folder = tmp_path / "rotated" / "checkpoints" / "step-00000002"
        damage = at(3, lambda _: flip(folder / "training.json"))
        start("rotated", max_steps=5, checkpoint_every=1, keep_checkpoints=1, callbacks=[damage]).train()
        assert [path.name for path in list_checkpoints(tmp_path / "rotated")] == ["step-00000002", "step-00000005"]
        load_model(folder)

    def test_damaged_weights_are_an_error_and_a_nan_loss_or_a_damaged_state_is_never_the_best(self, run, caplog):
        best = best_checkpoint(run)
        assert find_model(run) == best
        flip(best / "model.safetensors")
        with pytest.raises(CheckpointError, match=re.escape(f"{best / 'model.safetensors'} is damaged")):
            load_model(find_model(run))  # and not a worse model
        state = read_state(best)
        state.evaluation["loss"] = float("nan")
        write_evaluation(best, state)
        second = best_checkpoint(run)
        assert second not in (best, None)
        flip(second / "training.json", 30)
        assert best_checkpoint(run) not in (second, None)
        assert f"passing over {second / 'training.json'} is damaged" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 5", "batch_size: 4", "train.batch_size · gradient_accumulation is 5, but the run in .* has 4"),
        ("batch_size: 5", "catch_size: 5", r"config\.yaml is damaged, or of another version: .*catch_size"),
        ("train:", "tra\x00n:", r"config\.yaml is not valid YAML"),
    ],
)
def test_a_changed_configuration_is_refused(resume, run, old, new, message):
    path = run / "config.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message):
        resume()
