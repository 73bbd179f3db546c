"""Recall probes: does the model know a word that the story told long before?

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sqat.data.batches import IGNORE
from sqat.data.stories import Probe, recall_probe
from sqat.data.tokenizer import PAD, Tokenizer
from sqat.model import Decoder
from sqat.train.loss import token_losses

ROWS = 64  # at a time


class ProbeResult(NamedTuple):
    """Share of probes whose answer the model finds likelier than each of the four other words of its kind."""

    accuracy: float
    number: int
    chance: float = 0.2


@torch.no_grad()
def score_probes(model: Decoder, tokenizer: Tokenizer, count: int, seed: int = 0) -> ProbeResult:
    """Ask `count` probes.

    A word's likelihood is that of all its tokens together, given the prompt. Prompts longer than the model's context
    lose their beginning; the built-in stories are shorter than that with all presets.
    """
    probes = [recall_probe(index, seed) for index in range(count)]
    rows = [
        _row(tokenizer, probe.prompt, word, model.config.context_length) for probe in probes for word in _words(probe)
    ]
    was_training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    likelihoods = torch.empty(len(rows))
    for start in range(0, len(order), ROWS):
        some = order[start : start + ROWS]
        likelihoods[some] = _log_likelihoods(model, [rows[i] for i in some])
    model.train(was_training)
    by_probe = likelihoods.split([len(_words(probe)) for probe in probes])
    right = sum(bool((words[0] > words[1:]).all()) for words in by_probe)
    return ProbeResult(right / count, count)


def _words(probe: Probe) -> tuple[str, ...]:
    return (probe.answer, *probe.distractors)


def _row(tokenizer: Tokenizer, prompt: str, word: str, context_length: int) -> tuple[list[int], int]:
    """(token ids of prompt and word, how many of them are the word's)."""
    before = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    whole = [tokenizer.bos_id, *tokenizer.encode(f"{prompt} {word}")]
    shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    return whole[-context_length - 1 :], len(whole) - shared


def _log_likelihoods(model: Decoder, rows: Sequence[tuple[list[int], int]]) -> Tensor:
    """Of each row's last tokens together, given those before, (B,)."""
    device = model.embedding.weight.device
    width = max(len(tokens) for tokens, _ in rows) - 1
    inputs_BT = torch.full((len(rows), width), PAD)
    targets_BT = torch.full_like(inputs_BT, IGNORE)
    for row, (tokens, answer) in enumerate(rows):
        inputs_BT[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        targets_BT[row, len(tokens) - 1 - answer : len(tokens) - 1] = torch.tensor(tokens[-answer:])
    inputs_BT, targets_BT = inputs_BT.to(device), targets_BT.to(device)
    hidden_BTD, _ = model.hidden_states(inputs_BT)
    wanted = targets_BT != IGNORE
    losses, _ = token_losses(hidden_BTD[wanted], model.head.weight, model.head.bias, targets_BT[wanted])
    row_of = wanted.nonzero()[:, 0]
    return -torch.zeros(len(rows), device=device).index_add(0, row_of, losses).cpu()
