import math

import pytest
import torch
import torch.nn.functional as F

from sqat.convert import convert, plan_conversion, verify
from sqat.convert.tokenizer import document_rows
from sqat.errors import ConfigError


def test_a_model_is_close_to_itself(stock_model, rows):
    model = stock_model("qwen3")
    figures = verify(model, model, rows)
    assert figures.kl < 1e-6
    assert figures.agreement == 1
    assert figures.perplexity_before == figures.perplexity_after
    assert figures.similarity == pytest.approx([1, 1, 1], abs=1e-5)
    assert figures.tokens == 85


def test_figures_are_those_of_the_definition(stock_model, rows):
    model = stock_model("llama")
    result = convert(model, plan_conversion(model.config, query_heads=4, method="mean"))
    figures = verify(model.train(), result, rows)
    assert (model.training, result.training) == (True, False)
    with torch.no_grad():
        old, new = (m.eval()(rows, output_hidden_states=True) for m in (model, result))
    p = old.logits.softmax(-1)
    kl = (p * (p.log() - new.logits.log_softmax(-1))).sum(-1).mean()
    assert figures.kl == pytest.approx(float(kl), rel=1e-4)
    loss = F.cross_entropy(new.logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert figures.perplexity_after == pytest.approx(math.exp(float(loss)), rel=1e-4)
    cosine = F.cosine_similarity(old.hidden_states[2], new.hidden_states[2], dim=-1)
    assert figures.similarity[1] == pytest.approx(float(cosine.mean()), rel=1e-4)
    with torch.no_grad():  # the last layer's own output, not what the final norm makes of it
        last = [m.model.layers[2](o.hidden_states[2], **_arguments(m, rows)) for m, o in ((model, old), (result, new))]
    cosine = F.cosine_similarity(*last, dim=-1)
    assert figures.similarity[2] == pytest.approx(float(cosine.mean()), rel=1e-4)
    normed = F.cosine_similarity(old.hidden_states[3], new.hidden_states[3], dim=-1)
    assert figures.similarity[2] != pytest.approx(float(normed.mean()), rel=1e-3)


def _arguments(model, rows):
    positions = torch.arange(rows.shape[1]).unsqueeze(0)
    hidden = model.model.embed_tokens(rows)
    mask = torch.full((1, 1, rows.shape[1], rows.shape[1]), float("-inf")).triu(1)
    return {"position_embeddings": model.model.rotary_emb(hidden, positions), "attention_mask": mask}


def test_what_cannot_be_compared_is_refused(stock_model, rows):
    model = stock_model("llama")
    with pytest.raises(ConfigError, match=r"data has the shape \(5, 1\), but must be \(rows, tokens\)"):
        verify(model, model, rows[:, :1])
    rows[2, 3] = 307
    with pytest.raises(
        ConfigError, match=r"data holds token 307, but must hold ids from 0 to 306: .* vocab_size is 307"
    ):
        verify(model, model, rows)
    with pytest.raises(ConfigError, match="num_hidden_layers is 2 after and 3 before, but must be the same"):
        verify(model, stock_model("llama", num_hidden_layers=2), rows)


def test_what_fills_up_a_row_counts_for_nothing(stock_model):
    """A row of 5 real tokens and 3 others scores as the 5 alone, beside a whole row."""
    model, other = stock_model("llama"), stock_model("llama")
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    data = torch.randint(0, model.config.vocab_size, (2, 8))
    real = torch.arange(8) < torch.tensor([[5], [8]])
    found = verify(model, other, data, real)
    short, long = verify(model, other, data[:1, :5]), verify(model, other, data[1:])
    assert found.tokens == 13
    for name in ("kl", "agreement"):
        expected = (5 * getattr(short, name) + 8 * getattr(long, name)) / 13
        assert getattr(found, name) == pytest.approx(expected, rel=1e-4)
    loss = (4 * math.log(short.perplexity_after) + 7 * math.log(long.perplexity_after)) / 11
    assert found.perplexity_after == pytest.approx(math.exp(loss), rel=1e-4)
    assert found.similarity[0] == pytest.approx((5 * short.similarity[0] + 8 * long.similarity[0]) / 13, rel=1e-4)


def test_documents_are_scored_apart(tmp_path):
    class Letters:
        def encode_documents(self, texts):
            return [[ord(letter) - 96 for letter in text] for text in texts]

    (tmp_path / "text.txt").write_text("abcde\n\nab\n\nabcdefghi")
    rows, real = document_rows(str(tmp_path / "text.txt"), Letters(), 4, 30)
    found = [row[kept].tolist() for row, kept in zip(rows, real, strict=True)]
    assert found == [[4, 5], [1, 2], [7, 8, 9], [1, 2, 3, 4], [1, 2, 3, 4], [4, 5, 6, 7]]
