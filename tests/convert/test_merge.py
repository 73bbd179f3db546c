"""Where merged heads are alike, nothing may change; where they are not, the result is what the definition says."""

import pytest
import torch

from sqat.convert import convert, plan_conversion
from sqat.convert.architectures import MIXED_TYPES, Heads, attention_layers
from sqat.convert.merge import merge_attention

OLD, NEW = Heads(12, 4, 10), Heads(4, 2, 10)


def make_alike(model, of, *, of_kv=1):
    """Give runs of `of` query heads the same query rows, and of `of_kv` key/value heads the same keys and values."""
    with torch.no_grad():
        for attention in attention_layers(model):
            for name, run in (("q_proj", of), ("k_proj", of_kv), ("v_proj", of_kv)):
                layer = getattr(attention, name)
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        heads = tensor.unflatten(0, (-1, 10))
                        heads.copy_(heads[::run].repeat_interleave(run, dim=0))


@pytest.mark.parametrize(
    ("alike", "plan"),
    [
        ({"of": 3}, {"query_heads": 4, "method": "mean"}),
        ({"of": 3}, {"query_heads": 4, "method": "cluster", "score": "norm"}),
        ({"of": 6, "of_kv": 2}, {"query_heads": 2, "kv_heads": 2}),
        ({"of": 1, "of_kv": 2}, {"query_heads": 12, "kv_heads": 2}),  # all query heads stay
    ],
)
@pytest.mark.parametrize("name", MIXED_TYPES)
def test_identical_heads_merge_exactly(name, alike, plan, stock_model, rows):
    model = stock_model(name)
    make_alike(model, **alike)
    result = convert(model, plan_conversion(model.config, **{"method": "mean", **plan}))
    assert result.config.num_attention_heads == plan["query_heads"]
    assert result.config.num_key_value_heads == plan.get("kv_heads", 4)
    torch.testing.assert_close(result(rows).logits, model(rows).logits, rtol=1e-4, atol=1e-5)


def test_selecting_heads_that_alone_do_something_is_exact(stock_model, rows):
    model = stock_model("qwen2")
    with torch.no_grad():
        for attention in attention_layers(model):
            attention.o_proj.weight.unflatten(1, (12, 10))[:, [0, 2, 3, 5, 6, 7, 10, 11]] = 0
    for score, calibration in (("norm", None), ("activation", rows)):
        plan = plan_conversion(model.config, query_heads=4, method="select", score=score)
        result = convert(model, plan, calibration)
        torch.testing.assert_close(result(rows).logits, model(rows).logits, rtol=1e-4, atol=1e-5)


def test_normalised_heads_of_different_size_merge_exactly(stock_model, rows):
    """A norm after the projection takes their size away again."""
    model = stock_model("qwen3", rms_norm_eps=0.0)
    make_alike(model, of=3)
    with torch.no_grad():
        for attention in attention_layers(model):
            attention.q_proj.weight.unflatten(0, (12, 10)).mul_(1 + torch.rand(12)[:, None, None] * 5)
    result = convert(model, plan_conversion(model.config, query_heads=4, method="mean"))
    torch.testing.assert_close(result(rows).logits, model(rows).logits, rtol=1e-4, atol=1e-5)


def test_layer_is_what_the_definition_says():
    tensors = {
        "q_proj.weight": torch.randn(120, 7),
        "q_proj.bias": torch.randn(120),
        "k_proj.weight": torch.randn(40, 7),
        "v_proj.weight": torch.randn(40, 7),
        "v_proj.bias": torch.randn(40),
        "o_proj.weight": torch.randn(7, 120),
        "o_proj.bias": torch.randn(7),
    }
    groups = [(0, 2, 5), (1, 3, 4), (6,), (7, 8, 9, 10, 11)]
    merged = merge_attention(tensors, groups, OLD, NEW)
    for i, group in enumerate(groups):
        own = slice(10 * i, 10 * i + 10)
        old = [slice(10 * h, 10 * h + 10) for h in group]
        for name in ("q_proj.weight", "q_proj.bias"):
            torch.testing.assert_close(merged[name][own], sum(tensors[name][h] for h in old) / len(group))
        expected = sum(tensors["o_proj.weight"][:, h] for h in old)
        torch.testing.assert_close(merged["o_proj.weight"][:, own], expected)
    for name in ("k_proj.weight", "v_proj.weight", "v_proj.bias"):
        pairs = [(tensors[name][a : a + 10] + tensors[name][a + 10 : a + 20]) / 2 for a in (0, 20)]
        torch.testing.assert_close(merged[name], torch.cat(pairs))
    assert merged["o_proj.bias"] is tensors["o_proj.bias"]


def test_values_of_different_heads_with_one_output_matrix_are_exact():
    """(o + o) · (v + w) / 2 = o · v + o · w."""
    value = torch.randn(2, 5, 7)
    output = torch.randn(7, 5)
    tensors = {
        "q_proj.weight": torch.randn(10, 7),
        "k_proj.weight": torch.randn(10, 7),
        "v_proj.weight": value.flatten(0, 1),
        "o_proj.weight": torch.cat((output, output), dim=1),
    }
    merged = merge_attention(tensors, [(0, 1)], Heads(2, 2, 5), Heads(1, 1, 5))
    written = merged["o_proj.weight"] @ merged["v_proj.weight"]
    torch.testing.assert_close(written, output @ value[0] + output @ value[1])


def test_bfloat16_is_rounded_once(stock_model):
    model = stock_model("llama").bfloat16()
    result = convert(model, plan_conversion(model.config, query_heads=4, method="mean"))
    assert result.dtype == torch.bfloat16
    rows = model.model.layers[1].self_attn.q_proj.weight.float().unflatten(0, (4, 3, 10)).mean(dim=1).flatten(0, 1)
    assert torch.equal(result.model.layers[1].self_attn.q_proj.weight, rows.bfloat16())
