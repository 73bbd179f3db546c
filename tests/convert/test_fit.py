"""Heads chosen and output projections fitted by least squares."""

import itertools

import pytest
import torch

from sqat.convert import choose_heads, convert, plan_conversion
from sqat.convert.architectures import Heads, attention_layers
from sqat.convert.fit import RIDGE, fit_output

OLD = Heads(6, 2, 5)


def naive(values, targets, weight, bias, heads):
    """Squared error, weights and bias of ridge regression on the values of some heads, by stacked rows."""
    columns = [h * 5 + c for h in heads for c in range(5)]
    ridge = (RIDGE * values.square().sum(dim=0).mean()).sqrt()
    x, prior = values[:, columns], weight[:, columns]
    if bias is not None:
        x, prior = torch.cat((x, torch.ones(len(x), 1)), dim=1), torch.cat((prior, bias[:, None]), dim=1)
    x, y = x.double(), targets.double()
    rows, right = torch.cat((x, ridge * torch.eye(x.shape[1]).double())), torch.cat((y, ridge * prior.T.double()))
    fitted = torch.linalg.lstsq(rows, right).solution
    dropped = (weight.double().square().sum() - prior[:, : len(columns)].double().square().sum()) * ridge**2
    return float((rows @ fitted - right).square().sum() + dropped), fitted.T.float()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("query", "kv"), [(4, 2), (2, 2), (3, 1)])
def test_the_heads_kept_leave_the_least_error_of_all_choices(query, kv, bias):
    values, mixing = torch.randn(211, 30), torch.randn(30, 7)
    values = values @ torch.randn(30, 30)  # heads that explain each other in part
    targets, weight = values @ mixing + torch.randn(211, 7), torch.randn(7, 30)
    offset = torch.randn(7) if bias else None
    found = fit_output(values, targets, weight, offset, OLD, Heads(query, kv, 5))
    pools = [range(start, start + 6 // kv) for start in range(0, 6, 6 // kv)]
    choices = itertools.product(*(itertools.combinations(pool, query // kv) for pool in pools))
    best = min(
        (tuple(itertools.chain(*choice)) for choice in choices),
        key=lambda h: naive(values, targets, weight, offset, h)[0],
    )
    assert found.groups == [(h,) for h in best]
    expected = naive(values, targets, weight, offset, best)[1]
    torch.testing.assert_close(found.output["weight"], expected[:, : 5 * query], rtol=1e-3, atol=1e-4)
    assert ("bias" in found.output) == bias
    if bias:
        torch.testing.assert_close(found.output["bias"], expected[:, -1], rtol=1e-3, atol=1e-4)


def test_fitted_projections_beat_kept_ones_on_the_text_and_leave_the_model_alone(stock_model, rows):
    model = stock_model("qwen3")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected, errors = model(rows).logits, {}
    for method in ("fit", "select"):
        result = convert(model, plan_conversion(model.config, query_heads=4, kv_heads=2, method=method), rows)
        errors[method] = (result(rows).logits - expected).square().mean()
    assert errors["fit"] < 0.5 * errors["select"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_outside_the_range_keep_their_weights(stock_model, rows):
    model, seen = stock_model("llama"), []
    plan = plan_conversion(model.config, query_heads=4, layers="1-1", to="transformers")
    heads = choose_heads(model, plan, rows, progress=lambda *counts: seen.append(counts))
    assert [len(layer.groups) for layer in heads] == [12, 4, 12]
    assert [bool(layer.output) for layer in heads] == [False, True, False]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    result = convert(model, plan, heads=heads)
    old, new = (attention_layers(each)[2].o_proj.weight for each in (model, result))
    assert torch.equal(old, new)
