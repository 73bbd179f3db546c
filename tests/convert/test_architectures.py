"""Every causal language model of transformers: its heads can be taken, exactly where they are alike, or it is refused.

What docs/converting.md lists is held to this file.
"""

import re
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from sqat.convert import convert, plan_conversion
from sqat.convert.architectures import CAUSAL, QUERIES, attention_layers, heads_of, unfused
from sqat.convert.files import quiet
from sqat.errors import ConfigError

SIZES = {
    "vocab_size": 307,
    "hidden_size": 48,  # a multiple of both numbers of heads, which some ask for
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 12,
    "max_position_embeddings": 61,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4}
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 5}
SSM = {"mamba_num_heads": 4, "mamba_head_dim": 24, "ssm_state_size": 5, "n_groups": 1}
HYBRID = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # attention in every fourth layer
NOT_BUILT = {"gemma4_assistant"}  # of its own default configuration
PLAIN = """
apertus arcee cohere cohere2 cohere2_moe cwm doge
ernie4_5 exaone4 flint gemma gemma2 gemma3_text glm glm4 gpt_oss granite
granite_swa granitemoe granitemoe_swa granitemoeshared hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2 kolibri1
llama mellum ministral ministral3 mistral nanochat nemotron olmo phi phi3 qwen2 qwen3
seed_oss smollm3 starcoder2 vaultgemma
"""
CONVERTED = {
    **{name: {} for name in PLAIN.split()},
    **dict.fromkeys("afmoe aria_text exaone_moe hy_v3 mixtral phimoe qwen2_moe qwen3_moe".split(), EXPERTS),  # noqa: SIM905
    **dict.fromkeys(("dots1", "glm4_moe", "solar_open"), ROUTED),
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 96},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "minimax_m3_vl_text": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "nemotron_h": {**SSM, "layer_types": ["mamba", "attention"]},
    "qwen3_next": {**HYBRID, **EXPERTS},
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": {**HYBRID, **EXPERTS},
}


def tiny(name):
    return CONFIG_MAPPING[name](**{**SIZES, **CONVERTED.get(name, {})})


def with_pairs_alike(config):
    """A model of which every second query head is as the one before it."""
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no norm or bias is at its default
            parameter += 0.05 * torch.randn_like(parameter)
        for attention in filter(None, attention_layers(model)):
            for name, tensor in unfused(attention.state_dict(), heads_of(config)).items():
                if name.split(".")[0] in QUERIES:
                    heads = tensor.unflatten(0, (8, -1))
                    heads.copy_(heads[::2].repeat_interleave(2, dim=0))
    return model


@pytest.mark.parametrize("name", CONVERTED)
def test_heads_that_are_alike_become_one_and_stock_transformers_runs_it(name, tmp_path):
    config = tiny(name)
    model, rows = with_pairs_alike(config), torch.randint(4, 307, (3, 17))
    with quiet():
        convert(model, plan_conversion(config, query_heads=4, method="mean")).save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.num_attention_heads == 4
    torch.testing.assert_close(loaded(rows).logits, model(rows).logits, rtol=1e-4, atol=1e-5)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    assert torch.equal(loaded.generate(rows, **options), model.generate(rows, **options))


@pytest.mark.parametrize("name", CONVERTED)
def test_fitted_heads_make_up_for_those_that_are_alike(name):
    config = tiny(name)
    model, rows = with_pairs_alike(config), torch.randint(4, 307, (31, 17))
    expected = model(rows, use_cache=False).logits
    found = convert(model, plan_conversion(config, query_heads=4), rows)(rows, use_cache=False).logits
    assert (found - expected).norm() < 0.25 * expected.norm()


@pytest.mark.parametrize("name", sorted({*CAUSAL} - {*CONVERTED} - NOT_BUILT))
def test_all_others_are_refused_with_a_reason(name):
    try:
        config = tiny(name)
    except Exception:  # noqa: BLE001 (whatever a configuration says of sizes that are not its own)
        config = CONFIG_MAPPING[name]()
    with pytest.raises(ConfigError, match=r"cannot be|must|no "):
        plan_conversion(config, query_heads=4)


def test_the_documentation_lists_what_is_tried():
    page = (Path(__file__).parents[2] / "docs" / "converting.md").read_text()
    listed = re.search(r"<!-- architectures -->(.*?)<!-- end -->", page, re.DOTALL)
    assert listed is not None
    assert re.findall(r"`([\w-]+)`", listed[1]) == sorted(CONVERTED)
