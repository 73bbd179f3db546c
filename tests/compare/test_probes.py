"""Recall probes are scored as a loop over words would, and find what a model knows."""

import pytest
import torch
from torch import nn

from sqat.compare.probes import score_probes
from sqat.config import ModelConfig
from sqat.data.stories import recall_probe, story
from sqat.data.tokenizer import train_tokenizer
from sqat.model import Decoder

COUNT = 11


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((story(i) for i in range(60)), 401)


@pytest.fixture
def model():
    sizes = {"hidden_size": 23, "num_layers": 1, "num_query_heads": 3, "num_kv_heads": 1, "head_dim": 10}
    return Decoder(ModelConfig(**sizes, vocab_size=401, intermediate_size=13, context_length=512, init="torch"))


def naive(model, tokenizer):
    right = 0
    for index in range(COUNT):
        probe, scores = recall_probe(index), []
        for word in (probe.answer, *probe.distractors):
            before = [tokenizer.bos_id, *tokenizer.encode(probe.prompt)]
            whole = [tokenizer.bos_id, *tokenizer.encode(f"{probe.prompt} {word}")]
            assert whole[: len(before)] == before
            with torch.no_grad():
                log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(log_probs[i - 1, whole[i]].item() for i in range(len(before), len(whole))))
        right += scores[0] > max(scores[1:])
    return right / COUNT


def test_equals_a_loop(model, tokenizer):
    for seed in range(3):
        torch.manual_seed(seed)
        nn.init.normal_(model.embedding.weight)
        assert score_probes(model, tokenizer, COUNT) == pytest.approx(naive(model, tokenizer))


def test_one_who_knows_is_always_right(model, tokenizer, monkeypatch):
    answers = {}
    for index in range(COUNT):
        probe = recall_probe(index)
        prompt = (tokenizer.bos_id, *tokenizer.encode(probe.prompt))
        answers[prompt] = tokenizer.encode(f"{probe.prompt} {probe.answer}")[len(prompt) - 1 :]

    def knowing(model, rows):
        def score(tokens, count):
            return 1.0 if tokens[-count:] == answers[tuple(tokens[:-count])] else 0.0

        return torch.tensor([score(*row) for row in rows])

    monkeypatch.setattr("sqat.compare.probes._log_likelihoods", knowing)
    assert score_probes(model, tokenizer, COUNT) == 1


def test_a_model_that_knows_nothing_is_near_chance(model, tokenizer):
    with torch.no_grad():
        model.head.weight.normal_()
    assert score_probes(model, tokenizer, 101) < 0.45


def test_training_mode_is_left_as_it_was(model, tokenizer):
    model.train()
    score_probes(model, tokenizer, 2)
    assert model.training
