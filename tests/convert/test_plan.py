import pytest
import torch
from transformers import AutoModelForCausalLM

from sqat.convert import convert, plan_conversion
from sqat.convert.architectures import MIXED_TYPES
from sqat.errors import ConfigError


@pytest.mark.parametrize("name", MIXED_TYPES)
def test_plan_is_what_conversion_gives(name, stock_model):
    model = stock_model(name)
    plan = plan_conversion(model.config, query_heads=6, kv_heads=2, method="mean")
    result = convert(model, plan)
    for costs, which in ((plan.before, model), (plan.after, result)):
        assert costs.parameters == sum(p.numel() for p in which.parameters())
        attention = [p for n, p in which.named_parameters() if ".self_attn." in n]
        assert costs.attention_parameters == sum(p.numel() for p in attention)
    after = dict(result.named_parameters())
    assert plan.shapes == {
        n: (tuple(p.shape), tuple(after[n].shape)) for n, p in model.named_parameters() if p.shape != after[n].shape
    }
    assert {n.split(".")[-2] for n in plan.shapes} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert plan.before.kv_bytes_per_token == 3 * 2 * 4 * 10 * 2
    assert plan.after.kv_bytes_per_token == 3 * 2 * 2 * 10 * 2


def test_operations_of_a_dense_model(stock_config):
    plan = plan_conversion(stock_config("qwen3"), query_heads=6, kv_heads=2, context_length=11)
    for costs, query, kv in ((plan.before, 12, 4), (plan.after, 6, 2)):
        scores = 3 * 4 * query * 10 * 66 / 11
        layer = 24 * (query + 2 * kv) * 10 + query * 10 * 24 + 3 * 24 * 13
        assert costs.attention_flops_per_token == scores
        assert costs.flops_per_token == 2 * (3 * layer + 307 * 24) + scores


def test_operations_of_experts_and_windows(stock_config):
    mixtral = plan_conversion(stock_config("mixtral"), query_heads=12, kv_heads=4, context_length=11).before
    layer = 24 * 20 * 10 + 120 * 24 + 5 * 24 + 2 * 3 * 24 * 12  # two of five experts
    assert mixtral.flops_per_token - mixtral.attention_flops_per_token == 2 * (3 * layer + 307 * 24)
    mistral = plan_conversion(stock_config("mistral"), query_heads=12, context_length=11).before
    keys = sum(min(t, 7) for t in range(1, 12))
    assert mistral.attention_flops_per_token == round(3 * 4 * 12 * 10 * keys / 11)


def test_key_value_heads_by_default(stock_config):
    config = stock_config("qwen3")
    assert plan_conversion(config, query_heads=8).after.kv_heads == 4
    assert plan_conversion(config, query_heads=6).after.kv_heads == 2
    assert plan_conversion(config, query_heads=3).after.kv_heads == 1


def test_no_weights_are_made(stock_config):
    config = stock_config("llama", hidden_size=2**16, num_attention_heads=2**9, intermediate_size=2**17)
    plan = plan_conversion(config, query_heads=256)
    assert plan.before.parameters > 7 * 10**10  # 280 GB


def test_some_layers_save_their_share(stock_config):
    config = stock_config("llama")
    plan = plan_conversion(config, query_heads=4, layers="1-2", to="transformers")
    whole = plan_conversion(config, query_heads=4)
    saved = plan.before.parameters - plan.after.parameters
    assert 3 * saved == 2 * (whole.before.parameters - whole.after.parameters)
    assert {name.split(".")[2] for name in plan.shapes} == {"1", "2"}
    assert [heads.query for heads in plan.heads] == [12, 4, 4]
    assert plan_conversion(config, query_heads=4, to="transformers").after == whole.after
    with pytest.warns(FutureWarning, match='to="native" is now to="transformers"'):
        assert plan_conversion(config, query_heads=4, layers="1-2", to="native") == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_heads": 13}, "query_heads is 13, but must be 1 to 12, the model's own number"),
        ({"query_heads": 0}, "query_heads is 0, but must be 1 to 12"),
        (
            {"query_heads": 5},
            'query_heads is 5, which llama does not allow .to "transformers" does.: The hidden size .24. is',
        ),
        ({"kv_heads": 3}, "kv_heads is 3, but must divide the model's 4 .* one of 1, 2, 4"),
        ({"kv_heads": 4}, r"query_heads is 6, but must be a multiple of kv_heads \(4\)"),
        ({"to": "onnx"}, "to is 'onnx', but must be one of stock, transformers"),
        ({"context_length": 0}, "context_length is 0, but must be at least 1"),
        ({"method": "median"}, "method is 'median', but must be one of fit, mean, select, cluster"),
        ({"score": "loss"}, "score is 'loss', but must be one of activation, norm"),
        ({"layers": "1-2"}, 'layers is 1-2, but must be 0-2 for to "stock": a llama checkpoint holds one number'),
        ({"layers": "0-3"}, "layers is 0-3, but must be a-b with 0 <= a <= b <= 2"),
        ({"layers": "all"}, "layers is 'all', but must be a-b"),
        ({"layers": (0, 1.5)}, r"layers is \(0, 1\.5\), but must be a-b"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, stock_config):
    with pytest.raises(ConfigError, match=message):
        plan_conversion(stock_config("llama"), **{"query_heads": 6, **changes})


def test_quantised_weights_are_refused(stock_config):
    config = stock_config("llama", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match=r"quantization_config is set, but weights must be plain"):
        plan_conversion(config, query_heads=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_attention_heads": 8}, "3 layers of Heads.query=8"), ({"num_hidden_layers": 2}, "2 layers of .* with 3 of")],
)
def test_plan_of_another_model_is_refused(change, message, stock_model, stock_config):
    plan = plan_conversion(stock_config("llama", **change), query_heads=4)
    with pytest.raises(ConfigError, match=f"the plan is for llama with {message}.*plan for its own configuration"):
        convert(stock_model("llama"), plan)


def test_missing_calibration_is_named(stock_model):
    model = stock_model("llama")
    plan = plan_conversion(model.config, query_heads=4, method="select")
    with pytest.raises(ConfigError, match='calibration is None, but method "select" by score "activation" needs text'):
        convert(model, plan)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.arange(4, 21), r"calibration has the shape \(17,\), but must be \(rows, tokens\) with at least one row"),
        (torch.empty(0, 17, dtype=torch.long), r"calibration has the shape \(0, 17\), but must be"),
        (torch.tensor([[4, 307]]), "calibration holds token 307, but must hold ids from 0 to 306"),
        (torch.rand(5, 17), r"calibration holds torch\.float32, but must be a tensor of token ids"),
        ([[4, 5]], "calibration holds list, but must be a tensor"),
    ],
)
def test_calibration_that_is_no_rows_of_tokens(calibration, message, stock_model):
    model = stock_model("llama")
    plan = plan_conversion(model.config, query_heads=4, method="cluster")
    with pytest.raises(ConfigError, match=message):
        convert(model, plan, calibration)


def test_the_model_stays_as_it_is(stock_model, rows):
    model = stock_model("qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = convert(model, plan_conversion(model.config, query_heads=4, method="mean"))
    with torch.no_grad():
        for parameter in result.parameters():
            parameter += 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.config.num_attention_heads == 12
    assert isinstance(AutoModelForCausalLM.from_config(model.config), type(result))
