"""Peers that are missing are named, and those that are installed have our sizes."""

import pytest
import torch

from benchmarks.harness import peers
from sqat.cost import parameters
from sqat.variants import preset


def test_missing_peers_are_named(monkeypatch, context):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name in peers.REQUIRED["rxlm"] else "found")
    result = peers.measure_peers(context(peers=True))
    lacking = ", ".join(peers.REQUIRED["rxlm"])
    assert result.absent == {"rxlm": f"{lacking} not installed: make bench-setup"}
    assert not any("rxlm" in note for note in result.tables[0].notes)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_transformers_model_has_our_sizes(tiny_config, moe):
    config = tiny_config(moe, tie_embeddings=False)
    model = peers.qwen3(config)
    norms = 2 * config.num_layers * config.head_dim  # of queries and keys, which ours does not have
    assert sum(p.numel() for p in model.parameters()) == parameters(config).total + norms
    assert model(torch.randint(4, 41, (2, 7))).logits.shape == (2, 7, 41)


@pytest.mark.skipif(peers.missing("rxlm") is not None, reason=str(peers.missing("rxlm")))
def test_rxlm_model_has_our_sizes(capsys):
    config = preset("sqat-mm")
    model = peers.rxlm_model(config)
    assert sum(p.numel() for p in model.parameters()) == parameters(config).total
    assert capsys.readouterr().out == ""
