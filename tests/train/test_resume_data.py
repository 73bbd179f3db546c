"""A run resumes on the data it began with, and with its own tokenizer, or says what changed."""

import json

import pytest

from sqat.data.stories import story
from sqat.data.tokenizer import Tokenizer, train_tokenizer
from sqat.errors import CheckpointError, ConfigError
from sqat.train.checkpoints import best_checkpoint
from sqat.train.run import DATA_FILE
from sqat.train.state import read_state, write_evaluation

OTHER = r"began with other training data and other validation data: go back to that.*--accept-new-data"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(story(i) for i in range(101)))
    return path


@pytest.fixture
def resumed(start, interrupt, text):
    """`resumed(change, …)` stops a run at step 2, calls `change`, and resumes it."""

    def resume(change=lambda: None, accept_new_data=False, **data):
        start(data={"source": str(text)}, max_steps=4, callbacks=[interrupt(2)]).train()
        change()
        return start(data={"source": str(text), **data}, max_steps=4, resume=True, accept_new_data=accept_new_data)

    return resume


def append(text):
    with text.open("a") as file:
        file.write("\n\n" + "\n\n".join(story(i) for i in range(101, 403)))


def test_changed_text_is_refused_or_accepted_with_the_runs_own_tokenizer(resumed, start, text, tmp_path, caplog):
    settings = {"data": {"source": str(text)}, "max_steps": 4, "resume": True}
    assert resumed(text.touch).state.step == 2  # of another age, but the same
    append(text)
    with pytest.raises(ConfigError, match=rf"data\.source is '{text}', but the run .* {OTHER}"):
        start(**settings)
    trainer = start(accept_new_data=True, **settings)
    assert "began with other training data and other validation data" in caplog.text
    assert f"going on with the new data at epoch 0, row {trainer.state.data.row}" in caplog.text
    first, *_ = (tmp_path / "run" / "checkpoints").iterdir()
    assert trainer.tokenizer.fingerprint() == Tokenizer.load(first).fingerprint()
    assert json.loads((tmp_path / "run" / DATA_FILE).read_text())["train"] == trainer.batches.tokens.digest
    trainer.train()
    assert trainer.state.step == 4


def test_less_text_than_was_read_goes_on_with_the_next_epoch(resumed, text):
    trainer = resumed(lambda: text.write_text("One short text."), accept_new_data=True)
    assert trainer.state.data == (1, 0)


def test_another_source_is_refused_unless_accepted(resumed, start, tmp_path):
    data = {"source": str(tmp_path / "other.txt")}
    (tmp_path / "other.txt").write_text("\n\n".join(story(i) for i in range(7, 113)))
    with pytest.raises(ConfigError, match=r"data\.source is .*other\.txt', but the run"):
        resumed(**data)
    assert start(data=data, max_steps=4, resume=True, accept_new_data=True).state.step == 2


def test_another_tokenizer_is_refused_or_ignored(start, trained, interrupt, tmp_path):
    folder = tmp_path / "tokenizer"
    stories = [story(i) for i in range(101)]
    train_tokenizer(stories, 307).save(folder)
    settings = {"data": {"source": "stories:61", "tokenizer": str(folder)}, "max_steps": 4}
    first = trained(**settings, callbacks=[interrupt(2)])
    train_tokenizer(stories[:50], 300).save(folder)
    message = rf"data\.tokenizer is '{folder}', but the run .* began with another tokenizer"
    with pytest.raises(ConfigError, match=message):
        start(**settings, resume=True)
    resumed = start(**settings, resume=True, accept_new_data=True)
    assert resumed.tokenizer.fingerprint() == first.tokenizer.fingerprint()


def test_the_best_is_chosen_among_evaluations_on_the_same_data(start, at, tmp_path):
    data = {"source": "stories:61", "validation": "stories:2", "validation_limit": None}
    stop = at(4, lambda trainer: trainer.interrupt("a test"))
    start(data=data, max_steps=6, evaluate_every=2, checkpoint_every=1, callbacks=[stop]).train()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        state = read_state(path)
        if state.own_evaluation:
            state.evaluation["loss"] = 0.1  # better than anything on the new data
            write_evaluation(path, state)
    other = start(
        data={**data, "validation": "stories:3"},
        max_steps=6,
        resume=True,
        accept_new_data=True,
        evaluate_every=2,
        checkpoint_every=1,
    )
    assert other.state.best_loss is None
    other.train()
    assert best_checkpoint(tmp_path / "run").name in ("step-00000005", "step-00000006")


def test_a_missing_record_of_the_data_is_warned_of(resumed, tmp_path, caplog):
    assert resumed((tmp_path / "run" / DATA_FILE).unlink).state.step == 2
    assert "has no data.json: whether its data" in caplog.text


@pytest.mark.parametrize("damage", ["{", "[3]"])
def test_a_damaged_record_of_the_data_is_named(resumed, tmp_path, damage):
    path = tmp_path / "run" / DATA_FILE
    with pytest.raises(CheckpointError, match=r"data\.json is damaged; without it, --resume compares nothing"):
        resumed(lambda: path.write_text(damage))
