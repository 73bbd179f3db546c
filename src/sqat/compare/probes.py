"""Recall probes: does the model know a word that the story told long before?

Shape letters: B rows, T tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sqat.data.batches import IGNORE
from sqat.data.stories import recall_probe
from sqat.data.tokenizer import PAD, Tokenizer
from sqat.model import Decoder
from sqat.model.decoder import evaluating
from sqat.train.loss import token_losses

ROWS = 64  # scored at a time


@torch.no_grad()
def score_probes(model: Decoder, tokenizer: Tokenizer, count: int, seed: int = 0) -> float:
    """Ask a model `count` recall probes of the built-in stories; returns the share whose answer it finds likelier than
    each of the four distractors. Chance is 0.2.

    A word's likelihood is that of all its tokens together, given the prompt. A prompt longer than the model's context
    loses its beginning; the built-in stories are shorter than that with all presets.
    """
    words, rows = [], []  # answer and distractors of each probe; a row for each word
    for probe in (recall_probe(index, seed) for index in range(count)):
        words.append((probe.answer, *probe.distractors))
        rows += [_row(tokenizer, probe.prompt, word, model.config.context_length) for word in words[-1]]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))  # little padding
    likelihoods = torch.empty(len(rows))
    with evaluating(model):
        for start in range(0, len(order), ROWS):
            chosen = order[start : start + ROWS]
            likelihoods[chosen] = _log_likelihoods(model, [rows[i] for i in chosen])
    by_probe = likelihoods.split([len(own) for own in words])
    right = sum(bool((own[0] > own[1:]).all()) for own in by_probe)
    return right / count


def _row(tokenizer: Tokenizer, prompt: str, word: str, context_length: int) -> tuple[list[int], int]:
    """Token ids of prompt and word, and how many of them are the word's."""
    before = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    whole = [tokenizer.bos_id, *tokenizer.encode(f"{prompt} {word}")]
    shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    return whole[-context_length - 1 :], len(whole) - shared


def _log_likelihoods(model: Decoder, rows: Sequence[tuple[list[int], int]]) -> Tensor:
    """Log-likelihood of each row's word given what stands before it, (B,)."""
    device = model.embedding.weight.device
    width = max(len(tokens) for tokens, _ in rows) - 1
    inputs_BT = torch.full((len(rows), width), PAD)
    targets_BT = torch.full_like(inputs_BT, IGNORE)
    for row, (tokens, answer) in enumerate(rows):
        inputs_BT[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        targets_BT[row, len(tokens) - 1 - answer : len(tokens) - 1] = torch.tensor(tokens[-answer:])
    inputs_BT, targets_BT = inputs_BT.to(device), targets_BT.to(device)
    hidden_BTD, _ = model.hidden_states(inputs_BT)
    wanted_BT = targets_BT != IGNORE
    losses, _ = token_losses(hidden_BTD[wanted_BT], model.head.weight, model.head.bias, targets_BT[wanted_BT])
    row_of = wanted_BT.nonzero()[:, 0]
    return -torch.zeros(len(rows), device=device).index_add(0, row_of, losses).cpu()
