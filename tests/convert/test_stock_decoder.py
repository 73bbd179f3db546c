from __future__ import annotations

import pytest
import torch

from sqat.convert.architectures import MODEL_TYPES
from sqat.convert.stock_decoder import StockDecoder


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_packed_documents_do_not_see_each_other(name, stock_model, rows):
    decoder = StockDecoder(stock_model(name), 17)
    positions = torch.cat((torch.arange(5), torch.arange(1), torch.arange(11))).expand(5, -1)
    packed, _ = decoder.hidden_states(rows, positions=positions)
    alone = torch.cat([decoder.hidden_states(part)[0] for part in rows.split((5, 1, 11), dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(decoder.head(packed), decoder.model.get_output_embeddings()(packed))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_router_statistics_are_those_of_the_definition(name, stock_model, rows):
    decoder = StockDecoder(stock_model(name), 17)
    real = torch.rand(rows.shape) < 0.7
    _, stats = decoder.hidden_states(rows, real=real)
    logits = decoder.model(rows, output_router_logits=True).router_logits
    assert len(stats) == 3
    for layer, logits_NE in zip(stats, logits, strict=True):
        load, mass, chosen_mass = [0] * 5, torch.zeros(5), torch.zeros(5)
        for token, counts in zip(logits_NE, real.flatten(), strict=True):
            if counts:
                probs = token.softmax(-1)
                mass += probs
                for e in probs.argsort(descending=True)[:2]:
                    load[e] += 1
                    chosen_mass[e] += probs[e]
        assert layer.load_E.tolist() == load
        assert layer.tokens == real.sum()
        torch.testing.assert_close(layer.probability_E, mass)
        torch.testing.assert_close(layer.selected_E, chosen_mass)
        entropy = torch.distributions.Categorical(logits=logits_NE[real.flatten()]).entropy().sum()
        torch.testing.assert_close(layer.entropy, entropy)


def test_gradient_checkpointing_changes_nothing_but_memory(stock_model, rows):
    decoder = StockDecoder(stock_model("qwen3"), 17).train()
    grads = []
    for wanted in (False, True, False):
        decoder.gradient_checkpointing = wanted
        assert any(layer.gradient_checkpointing for layer in decoder.model.model.layers) == wanted
        decoder.zero_grad()
        decoder.hidden_states(rows)[0].square().sum().backward()
        grads.append(decoder.model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
