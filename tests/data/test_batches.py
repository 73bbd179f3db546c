"""Batches against naive versions of a few lines, and what must hold of any packing."""

import dataclasses
import logging
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import tokenizers
import torch

from sqat.data.batches import IGNORE, MEMORY_SHARE, Batch, Batches, BatchState, load_ids
from sqat.data.tokenizer import EOS, PAD
from sqat.errors import ConfigError

WORDS = "the cat sat on a mat, été 🙂 and so on; "
LENGTHS = (3, 41, 1, 7, 11, 5, 2, 97, 13, 1, 19, 29, 17)  # characters; 97 is longer than any context below
TEXTS = [(WORDS * 3)[:length] for length in LENGTHS]


@pytest.fixture(scope="module")
def tokens(tokens_of):
    return tokens_of(TEXTS)


def lists(batch):
    return [None if part is None else part.tolist() for part in batch[:4]]


def whole_epoch(batches, epoch=0):
    parts = [batch for batch, _ in batches.epoch(BatchState(epoch, 0))]
    tensors = (None if part[0] is None else torch.cat(part) for part in zip(*(p[:4] for p in parts), strict=True))
    return Batch(*tensors, sum(part.num_targets for part in parts))


def naive_packed(documents, context_length):
    """Inputs, targets, positions and document numbers of all rows, token by token."""
    stream = [
        (token, following, place, number)
        for number, document in enumerate(documents)
        for place, (token, following) in enumerate(zip(document, [*document[1:], IGNORE], strict=True))
    ]
    rows = []
    for start in range(0, len(stream) - 1, context_length):
        row = stream[start : start + context_length]
        row += [(PAD, IGNORE, place, len(documents)) for place in range(context_length - len(row))]
        columns = []
        for column, (token, following, place, number) in enumerate(row):
            began = max(0, column - place)  # the column of this document's first token in this row
            columns.append((token, following, column - began, number - row[0][3]))
        rows.append(columns)
    return [[[cell[part] for cell in row] for row in rows] for part in range(4)]


def naive_rows(documents, context_length, padding_as_target):
    inputs, targets = [], []
    for document in documents:
        row = document[:context_length]
        if padding_as_target and len(document) > context_length:
            row[-1] = EOS
        padding = context_length - len(row)
        inputs.append(row + [PAD] * padding)
        targets.append([*row[1:], *[PAD if padding_as_target else IGNORE] * padding, IGNORE])
    return [inputs, targets]


class TestPacked:
    @pytest.mark.parametrize("context_length", [2, 3, 5, 23, 500])
    @pytest.mark.parametrize("shuffle", [False, True])
    def test_equals_naive(self, tokens, context_length, shuffle):
        batches = Batches(tokens, batch_size=3, context_length=context_length, shuffle=shuffle, seed=5)
        order = batches._order(epoch=1).documents
        assert sorted(order) == list(range(len(tokens)))
        expected = naive_packed([tokens.document(i).tolist() for i in order], context_length)
        batch = whole_epoch(batches, epoch=1)
        assert lists(batch) == expected
        assert len(batch.inputs) == batches.rows_per_epoch
        assert all(part.dtype == torch.int64 for part in batch[:4])

    @pytest.mark.parametrize("context_length", [2, 23])
    def test_every_next_token_is_a_target_once(self, tokens, context_length):
        batch = whole_epoch(Batches(tokens, batch_size=3, context_length=context_length))
        is_target = batch.targets != IGNORE
        pairs = Counter(zip(batch.inputs[is_target].tolist(), batch.targets[is_target].tolist(), strict=True))
        documents = [tokens.document(i).tolist() for i in range(len(tokens))]
        assert pairs == Counter(pair for document in documents for pair in pairwise(document))
        assert batch.num_targets == tokens.num_tokens - len(tokens)
        assert is_target.any(dim=1).all()

    def test_documents_do_not_mix(self, tokens):
        """Positions count up by one within a document and restart where the number changes."""
        batch = whole_epoch(Batches(tokens, batch_size=3, context_length=23))
        same = batch.documents[:, 1:] == batch.documents[:, :-1]
        assert (batch.documents[:, 1:] - batch.documents[:, :-1])[~same].eq(1).all()
        assert (batch.documents[:, 0] == 0).all()
        assert (batch.positions[:, 0] == 0).all()
        assert (batch.positions[:, 1:] == torch.where(same, batch.positions[:, :-1] + 1, 0)).all()

    def test_last_token_opens_no_row_and_one_short_document(self, tokens_of):
        """A row of nothing but the last [EOS] would have no target."""
        tokens = tokens_of(["x" * 9])  # 11 tokens
        batches = Batches(tokens, batch_size=2, context_length=5)
        assert (tokens.num_tokens, batches.rows_per_epoch) == (11, 2)
        assert whole_epoch(batches).targets[-1, -1] == EOS
        tokens = tokens_of(["x"])
        token = int(tokens.tokens[1])
        inputs, targets = [2, token, 3, PAD, PAD], [token, 3, IGNORE, IGNORE, IGNORE]
        found = lists(Batches(tokens, batch_size=3, context_length=5).batch(0, 0))
        assert found == [[inputs], [targets], [[0, 1, 2, 0, 1]], [[0, 0, 0, 1, 1]]]


class TestRows:
    @pytest.mark.parametrize("context_length", [2, 5, 23, 500])
    @pytest.mark.parametrize("padding_as_target", [False, True])
    def test_equals_naive(self, tokens, context_length, padding_as_target):
        options = {"context_length": context_length, "padding_as_target": padding_as_target}
        batches = Batches(tokens, batch_size=3, mode="rows", **options)
        order = batches._order(epoch=0).documents
        expected = naive_rows([tokens.document(i).tolist() for i in order], context_length, padding_as_target)
        batch = whole_epoch(batches)
        assert lists(batch) == [*expected, None, None]
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert len(batch.inputs) == batches.rows_per_epoch == len(tokens)

    def test_the_originals_rows(self, tokens, tokenizer):
        """`padding_as_target` gives what the original's tokenizer call gives: truncated, padded, always with [EOS]."""
        options = {"mode": "rows", "shuffle": False, "padding_as_target": True}
        batches = Batches(tokens, batch_size=13, context_length=7, **options)
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.enable_truncation(7)
        backend.enable_padding(length=7, pad_id=PAD, pad_token="[PAD]")
        rows = [encoding.ids for encoding in backend.encode_batch(TEXTS)]
        batch = batches.batch(0, 0)
        assert batch.inputs.tolist() == rows
        assert batch.targets.tolist() == [[*row[1:], IGNORE] for row in rows]


@pytest.mark.parametrize("context_length", [2, 3, 7, 23, 500])
@pytest.mark.parametrize("options", [{}, {"mode": "rows"}, {"mode": "rows", "padding_as_target": True}], ids=str)
def test_targets_are_counted_without_looking_at_them(tokens, options, context_length):
    for batch, _ in Batches(tokens, batch_size=3, context_length=context_length, **options).epoch(BatchState(0, 0)):
        assert batch.counted == batch.num_targets == batch._replace(counted=None).num_targets
        assert batch.to("cpu").counted == batch.counted


@pytest.mark.parametrize("mode", ["packed", "rows"])
class TestOrder:
    def make(self, tokens, mode, **options):
        return Batches(tokens, batch_size=5, context_length=7, mode=mode, **options)

    def test_depends_on_seed_and_epoch_alone(self, tokens, mode):
        def order(seed, epoch):
            return whole_epoch(self.make(tokens, mode, seed=seed), epoch).inputs.tolist()

        orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
        assert len({*map(str, orders.values())}) == 4
        batches = self.make(tokens, mode, seed=1)
        for epoch in (1, 0, 1):
            assert whole_epoch(batches, epoch).inputs.tolist() == orders[1, epoch]
        batches = self.make(tokens, mode, shuffle=False)  # not even on those
        assert whole_epoch(batches, 0).inputs.tolist() == whole_epoch(batches, 1).inputs.tolist()
        assert batches.batch(0, 0).inputs[0, :3].tolist() == tokens.document(0).tolist()

    def test_resume_from_any_state(self, tokens, mode):
        count = 2 * len(self.make(tokens, mode)) + 1
        states, whole = [BatchState(0, 0)], []
        for batch, state in islice(self.make(tokens, mode).forever(), count):
            whole.append(lists(batch))
            states.append(state)
        for done in range(count):
            batches = self.make(tokens, mode).forever(states[done])
            resumed = [lists(batch) for batch, _ in islice(batches, count - done)]
            assert resumed == whole[done:]
        assert states[len(self.make(tokens, mode))] == BatchState(1, 0)

    @pytest.mark.parametrize("padding", [False, True])
    def test_targets_of_an_epoch(self, tokens, mode, padding):
        if padding and mode == "packed":
            pytest.skip("packed rows have no padding to count")
        batches = self.make(tokens, mode, padding_as_target=padding)
        assert batches.targets_per_epoch == whole_epoch(batches, 0).num_targets

    def test_last_batch(self, tokens, mode):
        batches = self.make(tokens, mode)
        full, rest = divmod(batches.rows_per_epoch, 5)
        assert rest
        sizes = [len(batch.inputs) for batch, _ in batches.epoch(BatchState(0, 0))]
        assert sizes == [5] * full + [rest]
        assert len(batches) == full + 1

    def test_place_between_batches(self, tokens, mode):
        """A state of another batch size goes on at its row."""
        batches = self.make(tokens, mode)
        resumed = [batch.inputs for batch, _ in batches.epoch(BatchState(0, 3))]
        assert torch.cat(resumed).equal(whole_epoch(batches).inputs[3:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"context_length": 1}, "context_length is 1; it must be at least 2"),
    ],
)
def test_unusable_arguments(tokens, options, message):
    with pytest.raises(ConfigError, match=message):
        Batches(tokens, **{"batch_size": 2, "context_length": 7, **options})


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_every_id_is_read(tokens, dtype):
    """Ids past the largest signed one too."""
    ids = np.array([0, 1, 2**15 - 1, 2**15, 2**16 - 1, np.iinfo(dtype).max], dtype=dtype)
    offsets, lengths = np.array([0, 6]), np.array([6])
    file = dataclasses.replace(tokens, tokens=ids, offsets=offsets, byte_lengths=lengths)
    batch = Batches(file, batch_size=1, context_length=6).batch(0, 0)
    assert batch.inputs.tolist() == [ids.tolist()]


def test_a_gpu_without_room_leaves_the_ids_on_the_host(monkeypatch, caplog):
    free = int(2000 / MEMORY_SHARE) - 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    with caplog.at_level(logging.INFO):
        assert load_ids(np.zeros(1000, np.uint16), torch.device("cuda")).device.type == "cpu"
    assert "stay on the host: more than 25 %" in caplog.text
