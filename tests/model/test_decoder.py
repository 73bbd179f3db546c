"""The whole model: whatever way tokens reach it, the numbers are the same.

Shape letters: B rows, T tokens, V vocabulary.
"""

import math

import pytest
import torch

from sqat.model import KVCache
from sqat.model.decoder import _warn_of_length, evaluating

B, T, V = 5, 13, 41
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=[False, True], ids=["dense", "experts"])
def build(request, tiny_model):
    return lambda **changes: tiny_model(request.param, **changes)


def draw(*shape):
    return torch.randint(V, shape)


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def left_padded(rows):
    """Rows of different length as one batch, and how much padding each got."""
    longest = max(map(len, rows))
    padding_B = torch.tensor([longest - len(row) for row in rows])
    filler = [draw(int(n)) for n in padding_B]  # any token: nothing may depend on it
    return torch.stack([torch.cat(parts) for parts in zip(filler, rows, strict=True)]), padding_B


class TestForward:
    def test_logits_are_the_head_of_the_hidden_states(self, build):
        model, tokens = build(head_bias=True), draw(B, T)
        (logits, router), (hidden, _) = model(tokens), model.hidden_states(tokens)
        assert (logits.shape, hidden.shape, len(router)) == ((B, T, V), (B, T, 23), 2 if model.config.is_moe else 0)
        assert logits.equal(model.head(hidden))

    def test_causal_and_rows_do_not_mix(self, build):
        model, tokens = build(), draw(B, T)
        changed = tokens.clone()
        changed[1:, 7] = (tokens[1:, 7] + 1) % V
        difference = (model(changed).logits - model(tokens).logits).abs().amax(dim=2)
        assert (difference[0] < 1e-5).all()
        assert (difference[:, :7] < 1e-5).all()
        assert (difference[1:, 7:].amax(dim=0) > 1e-4).all()

    def test_positions_are_relative(self, build):
        model, tokens = build(), draw(B, T)
        shifted = model(tokens, positions=torch.arange(T) + 100).logits
        torch.testing.assert_close(shifted, model(tokens).logits, rtol=1e-3, atol=1e-3)
        stretched = model(tokens, positions=2 * torch.arange(T)).logits
        assert not stretched.allclose(shifted, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("final_norm", [None, "layernorm"])
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
    def test_every_parameter_matters(self, build, final_norm, tied, norm):
        biases = dict.fromkeys(("qkv_bias", "attention_out_bias", "feedforward_bias", "head_bias"), True)
        model = build(final_norm=final_norm, tie_embeddings=tied, norm=norm, **biases)
        for name, gradient in gradients(model, model(draw(B, T)).logits.square().sum()).items():
            assert gradient.abs().max() > 0, name

    def test_nothing_is_kept_on_modules(self, build):
        def inventory(model):
            return {(name, key): id(value) for name, m in model.named_modules() for key, value in vars(m).items()}

        model = build()
        before, tensors = inventory(model), list(model.state_dict())
        model(draw(B, T), cache=KVCache(model.config, B, T))
        model.train()(draw(B, T)).logits.sum().backward()
        after = inventory(model.eval())
        assert after.keys() == before.keys()
        assert {key for (name, key), value in before.items() if after[name, key] != value} <= {"training"}
        assert list(model.state_dict()) == tensors

    def test_bfloat16_autocast_is_close(self, build):
        model, tokens = build(), draw(B, T)
        expected = model(tokens).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = model(tokens).logits
        assert found.dtype == torch.bfloat16
        assert 0 < (found - expected).abs().mean() < 0.03 * expected.std()
        found = model.to(torch.bfloat16)(tokens).logits
        assert found.dtype == torch.bfloat16
        assert (found - expected).abs().mean() < 0.1 * expected.std()

    def test_dropout_acts_in_training_only(self, build):
        model, tokens = build(attention_dropout=0.3, feedforward_dropout=0.3), draw(B, T)
        assert model(tokens).logits.equal(model(tokens).logits)
        model.train()
        assert not model(tokens).logits.equal(model(tokens).logits)

    @pytest.mark.parametrize("tied", [True, False])
    def test_a_tied_head_is_the_embedding(self, build, tied):
        model = build(tie_embeddings=tied)
        assert (model.head.weight is model.embedding.weight) == tied
        assert ("head.weight" in dict(model.named_parameters())) != tied
        assert model.head.weight.equal(model.embedding.weight) == tied


class TestPacked:
    """Documents of 5, 1 and 7 tokens in a row of 13, or 13 of a row alone."""

    LENGTHS = ((5, 1, 7), (13,), (1, 11, 1))

    @pytest.mark.parametrize(("window", "global_tokens"), [(1, 0), (3, 0), (3, 2), (11, 1)])
    def test_packed_windows_equal_unpacked(self, build, window, global_tokens):
        """A window ends where a document begins, and every document has global tokens of its own."""
        self.test_packed_equals_unpacked(lambda: build(window=window, global_tokens=global_tokens))

    def test_packed_equals_unpacked(self, build):
        model = build()
        documents = [[draw(length) for length in row] for row in self.LENGTHS]
        tokens = torch.stack([torch.cat(row) for row in documents])
        positions = torch.stack([torch.cat([torch.arange(len(d)) for d in row]) for row in documents])
        numbers = torch.stack([torch.cat([torch.full((len(d),), i) for i, d in enumerate(row)]) for row in documents])
        packed = model(tokens, positions=positions, documents=numbers).logits
        for row, found in zip(documents, packed, strict=True):
            alone = torch.cat([model(document.unsqueeze(0)).logits[0] for document in row])
            torch.testing.assert_close(found, alone, **TOLERANCE)

    def test_padding_does_not_count_and_documents_and_cache_exclude_each_other(self, tiny_model):
        model, tokens, real = tiny_model(moe=True), draw(B, T), torch.rand(B, T) < 0.5
        with pytest.raises(ValueError, match="documents and cache exclude each other"):
            model(tokens, documents=torch.zeros_like(tokens), cache=KVCache(model.config, B, T))
        output = model(tokens, real=real)
        assert output.logits.equal(model(tokens).logits)
        assert {int(layer.tokens) for layer in output.router} == {int(real.sum())}


class TestCache:
    @pytest.mark.parametrize("sizes", [[1] * T, [7, 6], [5, 1, 1, 6], [T]], ids=str)
    def test_cached_equals_uncached(self, build, sizes):
        model, tokens = build(), draw(B, T)
        cache = KVCache(model.config, B, T)
        parts = [model(part, cache=cache).logits for part in tokens.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens).logits, **TOLERANCE)

    def test_left_padded_rows_are_as_alone(self, build):
        model = build()
        rows = [draw(length) for length in (11, 3, 7, 1)]
        later = draw(len(rows), 5)
        tokens, padding_B = left_padded(rows)
        cache = KVCache(model.config, len(rows), 11 + 5, padding_B=padding_B)
        first = model(tokens, cache=cache).logits
        second = torch.cat([model(part, cache=cache).logits for part in later.split([1, 1, 3], dim=1)], dim=1)
        for i, row in enumerate(rows):
            alone = model(torch.cat((row, later[i])).unsqueeze(0)).logits[0]
            torch.testing.assert_close(torch.cat((first[i, -len(row) :], second[i])), alone, **TOLERANCE)

    def test_cache_is_filled_in_training_mode_too(self, build):
        model, tokens = build().train(), draw(B, T)
        model.gradient_checkpointing = True
        cache = KVCache(model.config, B, T)
        with torch.no_grad():
            model(tokens, cache=cache)
        assert cache.length == T


class TestGradientCheckpointing:
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_gradients_are_the_same_and_layers_are_run_again(self, build, dropout):
        model, tokens = build(feedforward_dropout=dropout).train(), draw(B, T)
        found, runs = [], []
        model.layers[0].norm1.register_forward_hook(lambda *_: runs.append(model.gradient_checkpointing))
        for model.gradient_checkpointing in (False, True):
            torch.manual_seed(7)
            loss = model(tokens).logits.square().mean()
            found.append(gradients(model, loss))
        torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)
        assert runs == [False, True, True]


def test_logits_of_a_uniform_model_are_uniform(tiny_model):
    """With all weights zero the loss is that of guessing."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    log_probs = model(draw(B, T)).logits.log_softmax(dim=-1)
    torch.testing.assert_close(log_probs, torch.full((B, T, V), -math.log(V)))


def test_evaluating_is_undone_after_an_error(tiny_model):
    model = tiny_model().train()
    with pytest.raises(RuntimeError, match="size"), evaluating(model):
        model.final_norm(torch.zeros(3, 7) if not model.training else torch.zeros(3, 23))
    assert model.training


def test_a_sequence_longer_than_those_in_training_is_warned_of_once(tiny_model, caplog):
    model = tiny_model(context_length=11)
    _warn_of_length.cache_clear()
    for _ in range(2):
        model(torch.zeros(1, 11, dtype=torch.long))
    assert not caplog.messages
    for _ in range(2):
        model(torch.zeros(1, 12, dtype=torch.long))
        cache = KVCache(model.config, 1, 12)
        model(torch.zeros(1, 7, dtype=torch.long), cache=cache)
        model(torch.zeros(1, 5, dtype=torch.long), cache=cache)
    (message,) = caplog.messages
    assert "longer than the 11 tokens" in message
