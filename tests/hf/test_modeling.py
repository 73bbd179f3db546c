"""The transformers classes hold the same model as the core's decoder."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

import sqat.config
from sqat.errors import ConfigError
from sqat.hf import SQATConfig, SQATForCausalLM, from_decoder, modeling_sqat, to_decoder
from sqat.hf.configuration_sqat import CHOICES
from sqat.hf.core import to_model_config, to_transformers_config
from sqat.hf.modeling_sqat import load_balancing_loss
from sqat.model import Decoder
from sqat.train.loss import router_loss
from sqat.variants import PRESETS, preset

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def shrunk(name):
    """A preset with its head counts and quirks, and small, mostly prime sizes."""
    config = preset(name)
    sizes = {"vocab_size": 41, "hidden_size": 23, "head_dim": 6, "num_layers": 2, "intermediate_size": 13}
    if config.is_moe:
        sizes["num_experts"] = 7
    if config.window:
        sizes["window"] = 5
    return config.replace(**sizes, context_length=19)


def shaken(config):
    """A model whose every parameter is off its default."""
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", PRESETS)
def test_logits_equal_the_cores(name, implementation, tokens):
    core = shaken(shrunk(name))
    model = from_decoder(core)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, core(tokens).logits, **CLOSE)
        torch.testing.assert_close(to_decoder(model)(tokens).logits, core(tokens).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layernorm", "final_norm": "layernorm", "norm_eps": 0.01},
        {"gated": False, "activation": "relu", "feedforward_bias": True},
        {"gated": False, "activation": "gelu", "num_experts": 7, "experts_per_token": 3},
        {"qkv_bias": True, "activation": "sigmoid", "rope_theta": 100.0},
        {"activation": "linear", "num_query_heads": 2, "num_kv_heads": 6},
    ],
)
def test_logits_equal_the_cores_for_unusual_architectures(changes, tiny_model, tokens):
    core = tiny_model(**changes)
    with torch.no_grad():
        torch.testing.assert_close(from_decoder(core)(tokens).logits, core(tokens).logits, **CLOSE)


@pytest.mark.parametrize("changes", [{}, {"gated": False}, {"feedforward_bias": True}])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_expert_implementations_agree(implementation, changes, tiny_model):
    core = tiny_model(moe=True, hidden_size=24, intermediate_size=16, **changes)  # rows of whole 16-byte pieces
    model = from_decoder(core)
    assert model.config._experts_implementation == "grouped_mm"
    model.set_experts_implementation(implementation)
    tokens = torch.randint(41, (3, 17))
    torch.testing.assert_close(model(tokens).logits, core(tokens).logits, **CLOSE)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_autocast_changes_little_and_reaches_the_router(implementation, tiny_model, tokens):
    model = from_decoder(tiny_model(moe=True, hidden_size=24, intermediate_size=16))
    model.set_experts_implementation(implementation)
    plain = model(tokens, labels=tokens)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens, labels=tokens)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(plain.loss.item(), rel=0.02)
    assert model.get_parameter("model.layers.0.feedforward.router.weight").grad.abs().sum() > 0


def test_odd_sizes_take_the_loop(tiny_model):
    assert from_decoder(tiny_model(moe=True)).config._experts_implementation == "eager"


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_dropout_between_the_layers_in_training_only(implementation, tiny_model):
    core = tiny_model(moe=True, hidden_size=24, intermediate_size=16, feedforward_dropout=0.4)
    model = from_decoder(core)
    model.set_experts_implementation(implementation)
    moe = model.model.layers[0].feedforward
    x = torch.randn(1, 11, 24)
    plain = moe(x)
    mean = torch.stack([moe.train()(x) for _ in range(400)]).mean(dim=0)
    assert not torch.equal(moe(x), plain)
    assert (mean - plain).abs().mean() < 0.1 * plain.abs().mean()
    assert torch.equal(moe.eval()(x), plain)


def test_padding_and_packed_documents_stay_unseen(tiny_model, tokens):
    for changes in ({}, {"window": 5}, {"window": 5, "global_tokens": 2}):
        core = tiny_model(**changes)
        model = from_decoder(core)
        padded = torch.cat((torch.full((3, 4), 0), tokens), dim=1)
        mask = (torch.arange(21) >= 4).expand(3, -1).long()
        with torch.no_grad():
            expected = core(tokens).logits
            torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], expected, **CLOSE)
            packed = tokens[:1].roll(3)
            documents = torch.cat((torch.zeros(1, 8), torch.ones(1, 9)), dim=1).long()
            positions = torch.cat((torch.arange(8), torch.arange(9))).unsqueeze(0)
            torch.testing.assert_close(
                model(packed, position_ids=positions, use_cache=False).logits,
                core(packed, positions=positions, documents=documents).logits,
                **CLOSE,
            )


def test_loss_ignores_minus_100_and_shifts(tiny_model, tokens):
    model = from_decoder(tiny_model())
    labels = tokens.clone()
    labels[0, :9] = labels[2, 5] = -100
    output = model(tokens, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, expected)


def test_tokens_and_embeddings_together_are_refused(tiny_model, tokens):
    model = from_decoder(tiny_model())
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        model(tokens, inputs_embeds=model.get_input_embeddings()(tokens))


@pytest.mark.parametrize("kept", [3, torch.tensor([2, 11])])
def test_logits_to_keep_gives_only_those(kept, tiny_model, tokens):
    model = from_decoder(tiny_model())
    every = model(tokens).logits
    expected = every[:, -kept:] if isinstance(kept, int) else every[:, kept]
    torch.testing.assert_close(model(tokens, logits_to_keep=kept).logits, expected)


def test_hidden_states_and_attentions_have_their_shapes(tiny_model, tokens):
    model = from_decoder(tiny_model(num_query_heads=3, num_kv_heads=6))
    model.set_attn_implementation("eager")
    output = model(tokens, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(3, 17, 23)] * 3
    assert [tuple(a.shape) for a in output.attentions] == [(3, 6, 17, 17)] * 2
    torch.testing.assert_close(output.attentions[1].sum(dim=-1), torch.ones(3, 6, 17))


def test_router_loss_is_the_cores(tiny_model, tokens):
    core = tiny_model(moe=True)
    model = from_decoder(core)
    mask = torch.ones_like(tokens)
    mask[1, :6] = 0
    plain = model(tokens, labels=tokens, attention_mask=mask)
    output = model(tokens, labels=tokens, attention_mask=mask, output_router_logits=True)
    assert [tuple(logits.shape) for logits in output.router_logits] == [(51, 7)] * 2
    torch.testing.assert_close(output.loss, plain.loss + 0.01 * output.aux_loss)
    with torch.no_grad():
        expected = router_loss(core(tokens).router, "balanced")
    torch.testing.assert_close(model(tokens, output_router_logits=True).aux_loss, expected)


def test_router_loss_counts_real_tokens_only():
    logits = torch.randn(13, 7)
    real = torch.arange(13) < 8
    torch.testing.assert_close(load_balancing_loss((logits,), 2, real), load_balancing_loss((logits[:8],), 2, None))


def test_gradients_are_the_cores_with_and_without_checkpointing(tiny_model, tokens):
    core = tiny_model(moe=True)
    F.cross_entropy(core(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for checkpointing in (False, True):
        model = from_decoder(core).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        for name, parameter in core.named_parameters():
            twin = model.get_parameter(name if name.startswith("head.") else f"model.{name}")
            torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_resized_vocabulary_keeps_its_logits(tied, tiny_model, tokens):
    model = from_decoder(tiny_model(tie_embeddings=tied, head_bias=True))
    before = model(tokens).logits
    model.resize_token_embeddings(47)
    after = model(tokens).logits
    assert after.shape == (3, 17, 47)
    torch.testing.assert_close(after[..., :41], before)
    assert (model.head.weight is model.model.embedding.weight) == tied
    assert to_decoder(model).config.vocab_size == 47


def test_initial_weights_follow_the_cores_schemes():
    for init in ("normal", "torch"):
        config = preset("sqat-mm").replace(init=init, hidden_size=64, num_layers=2)
        core, model = Decoder(config), SQATForCausalLM(to_transformers_config(config))
        for name, parameter in core.named_parameters():
            twin = model.get_parameter(name if name.startswith("head.") else f"model.{name}")
            assert twin.std(correction=0).item() == pytest.approx(parameter.std(correction=0).item(), rel=0.2), name


def test_flash_attention_is_refused_with_global_tokens(tiny_model, tokens):
    model = from_decoder(tiny_model(window=5, global_tokens=2))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation is 'flash_attention_2', but must be sdpa or eager"):
        model(tokens)


def test_configuration_goes_there_and_back():
    for name in PRESETS:
        config = to_transformers_config(preset(name))
        assert to_model_config(config) == preset(name)
        assert config.num_attention_heads == preset(name).num_query_heads
    assert SQATConfig(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4).num_layers == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_query_heads": 6, "num_kv_heads": 4}, "num_kv_heads is 4, but must divide num_query_heads"),
        ({"head_dim": 7}, "head_dim is 7, but must be even"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm', but must be one of rmsnorm, layernorm"),
        ({"final_norm": "no"}, "final_norm is 'no', but must be one of rmsnorm, layernorm, None"),
        ({"hidden_act": "tanh"}, "activation is 'tanh', but must be one of silu"),
        ({"init": "zeros"}, "init is 'zeros', but must be one of normal, torch"),
        ({"num_query_heads": 0}, "num_query_heads is 0, but must be at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0, but must be at least 1"),
        ({"intermediate_size": -3}, "intermediate_size is -3, but must be at least 1"),
        ({"context_length": 1}, "context_length is 1, but must be at least 2"),
        ({"num_experts": -1}, "num_experts is -1, but must be at least 0"),
        ({"window": 0}, "window is 0, but must be positive"),
        ({"window": 5, "global_tokens": -1}, "global_tokens is -1, but must be at least 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0, but must be positive"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0, but must be positive"),
        ({"attention_dropout": 1.0}, "attention_dropout is 1.0, but must be at least 0 and below 1"),
        ({"num_experts": 3, "experts_per_token": 4}, r"experts_per_token is 4, but must be between 1 and num_experts"),
        ({"global_tokens": 2}, "global_tokens is 2, but must be 0 where window is None"),
    ],
)
def test_unusable_configurations_are_named(changes, message):
    with pytest.raises(StrictDataclassError, match=message):
        SQATConfig(**changes)
    fields = {SQATConfig.attribute_map.get(name, name): value for name, value in changes.items()}
    with pytest.raises(ConfigError):  # the core's own rules are the same
        preset("sqat-s").replace(**fields)


def test_choices_are_the_cores():
    assert {
        "activation": sqat.config.ACTIVATIONS,
        "norm": sqat.config.NORMS,
        "final_norm": (*sqat.config.NORMS, None),
        "init": sqat.config.INITS,
    } == CHOICES


def test_the_model_is_one_file_that_imports_torch_and_transformers():
    text = Path(modeling_sqat.__file__).read_text(encoding="utf-8")
    imports = [line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert {name.split(".")[0] for name in imports} <= {"collections", "typing", "torch", "transformers", ""}
    assert [name for name in imports if name.startswith(".")] == [".configuration_sqat"]
