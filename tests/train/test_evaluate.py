import math

import pytest
import torch
import torch.nn.functional as F

from sqat.data.text import open_source
from sqat.data.tokenizer import train_tokenizer
from sqat.data.tokens import build_tokens
from sqat.train.evaluate import evaluate

CONTEXT = 13


TEXTS = ["short one", "a document that is longer than the context of thirteen tokens", "ünïcode", "x" * 40]


@pytest.fixture
def tokens(tmp_path):
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    return build_tokens(open_source(str(tmp_path / "texts.txt")), train_tokenizer(TEXTS, 263), tmp_path / "tokens")


@pytest.fixture
def model(tiny_model):
    return tiny_model(moe=True, vocab_size=263, tie_embeddings=False, head_bias=True)


def naive(model, windows):
    """Sums over one window at a time, without padding."""
    loss, correct, count = 0.0, 0.0, 0
    for window in windows:
        logits = model(torch.tensor([window[:-1]])).logits[0]
        targets = torch.tensor(window[1:])
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        correct += (logits.argmax(-1) == targets).sum().item()
        count += len(targets)
    return loss, correct, count


@torch.no_grad()
def test_every_real_token_counts_once(model, tokens):
    documents = [tokens.document(i).tolist() for i in range(len(tokens))]
    windows = [d[start : start + CONTEXT + 1] for d in documents for start in range(0, len(d) - 1, CONTEXT)]
    loss, correct, count = naive(model, windows)
    result = evaluate(model, tokens, context_length=CONTEXT, batch_size=3)
    assert result.targets == count == tokens.num_tokens - len(tokens)
    assert result.loss == pytest.approx(loss / count, rel=1e-5)
    assert result.accuracy == pytest.approx(correct / count)
    text_bytes = sum(len(text.encode()) for text in TEXTS)
    assert result.bits_per_byte == pytest.approx(loss / math.log(2) / text_bytes, rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(loss / count), rel=1e-5)


@torch.no_grad()
def test_padded_metrics_count_padding(model, tokens):
    pad, eos = 0, 3
    rows = [tokens.document(i).tolist() for i in range(len(tokens))]
    rows = [[*row[: CONTEXT - 1], eos] if len(row) > CONTEXT else row + [pad] * (CONTEXT - len(row)) for row in rows]
    loss, correct, count = naive(model, rows)
    result = evaluate(model, tokens, context_length=CONTEXT, padded_metrics=True)
    assert count == len(TEXTS) * (CONTEXT - 1)
    assert result.padded_loss == pytest.approx(loss / count, rel=1e-5)
    assert result.padded_accuracy == pytest.approx(correct / count)


def test_batch_size_changes_nothing(model, tokens):
    model.train()
    one, many = (evaluate(model, tokens, context_length=CONTEXT, batch_size=n) for n in (1, 7))
    assert model.training  # as before
    assert one.loss == pytest.approx(many.loss, rel=1e-6)
    assert one.router_entropy == pytest.approx(many.router_entropy, rel=1e-5)
    for a, b in zip(one.router_load, many.router_load, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
        assert sum(a) == pytest.approx(1)
    # The summary labels padded metrics.
    assert "counting padding: loss" in evaluate(model, tokens, padded_metrics=True).summary()
    assert "padding" not in evaluate(model, tokens).summary()
