"""RxNN's layout: names, values and configuration, there and back."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqat.checkpoint import load_model, save_model
from sqat.checkpoint.rxnn import ATT_TYPES, config_from_rxnn, config_to_rxnn
from sqat.checksums import MANIFEST
from sqat.errors import CheckpointError, ConfigError
from sqat.model import Decoder
from sqat.variants import PRESETS, VARIANTS, of_family, preset

RXNN_PRESETS = [name for name in PRESETS if preset(name).final_norm is None and preset(name).window is None]

VALUES = {  # a small configuration as RxNN writes it
    "att_type": "gqa",
    "att_heads": 6,
    "att_groups": 2,
    "att_num_query_groups": None,
    "att_dropout": 0.0,
    "embed_dim": 60,
    "num_layers": 2,
    "seq_len": 19,
    "vocab_size": 41,
    "use_rms_norm": True,
    "use_gated": True,
    "ff_activation": "silu",
    "ff_dim": 13,
    "ff_dropout": 0.1,
    "use_moe_ff": True,
    "ff_num_experts": 7,
    "ff_moe_top_k": 2,
}


def change_tensors(path, change):
    """Change what a file holds, without its checksums."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    (path.parent / MANIFEST).unlink()


class TestTensors:
    @pytest.mark.parametrize("moe", [True, False])
    @pytest.mark.parametrize("gated", [True, False])
    @pytest.mark.parametrize(("norm", "final_norm"), [("rmsnorm", None), ("layernorm", "layernorm")])
    def test_bit_for_bit_there_and_back(self, rxnn_model, tmp_path, moe, gated, norm, final_norm):
        model = rxnn_model(moe, gated=gated, norm=norm, final_norm=final_norm)
        loaded = load_model(save_model(model, tmp_path / "model", layout="rxnn"))
        assert loaded.config == model.config.replace(init="torch")
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize("moe", [True, False])
    @pytest.mark.parametrize("gated", [True, False])
    def test_names_and_shapes(self, rxnn_model, tmp_path, moe, gated):
        sizes = {"num_layers": 1, "num_query_heads": 4, "num_kv_heads": 2}
        model = rxnn_model(moe, gated=gated, norm="layernorm", final_norm="layernorm", **sizes)
        found = load_file(save_model(model, tmp_path / "model", layout="rxnn") / "model.safetensors")
        fc1, inner = ("fc1.linear", 26) if gated else ("fc1", 13)
        experts = [f"ff.experts.{e}" for e in range(7)] if moe else ["ff"]
        layer = {
            **{f"{norm}.{kind}": (60,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")},
            **{f"attention.{name}_proj.weight": (size, 60) for name, size in (("q", 40), ("k", 20), ("v", 20))},
            "attention.out_proj.weight": (60, 40),
            "attention.out_proj.bias": (60,),
            "attention.rope.inv_freq": (5,),
            **({"ff.router.gate.weight": (7, 60)} if moe else {}),
        }
        for expert in experts:
            layer |= {f"{expert}.{fc1}.weight": (inner, 60), f"{expert}.{fc1}.bias": (inner,)}
            layer |= {f"{expert}.fc2.weight": (60, 13), f"{expert}.fc2.bias": (60,)}
        whole = {"embedding.weight": (41, 60), "head.weight": (41, 60), "head.bias": (41,)}
        whole |= {"head_norm.weight": (60,), "head_norm.bias": (60,)}
        expected = {f"model.{name}": shape for name, shape in whole.items()}
        expected |= {f"model.layers.0.{name}": shape for name, shape in layer.items()}
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected

    def test_rotary_rows_go_from_halves_to_neighbours(self, rxnn_model, tmp_path):
        """Rows j and j + C/2 of a head in our q_proj and k_proj are rows 2j and 2j + 1 in RxNN's."""
        model = rxnn_model()
        found = load_file(save_model(model, tmp_path / "model", layout="rxnn") / "model.safetensors")
        for name, heads in [("q_proj", 6), ("k_proj", 3)]:
            ours = model.state_dict()[f"layers.1.attention.{name}.weight"].view(heads, 10, 60)
            theirs = found[f"model.layers.1.attention.{name}.weight"].view(heads, 10, 60)
            assert theirs[:, 0::2].equal(ours[:, :5])
            assert theirs[:, 1::2].equal(ours[:, 5:])
        assert found["model.layers.1.attention.v_proj.weight"].equal(model.layers[1].attention.v_proj.weight)

    def test_reverse_heads_are_in_rxnns_order(self, rxnn_model, tmp_path):
        """Of two query heads and six others, its first serves 0, 2 and 4, ours 0, 1 and 2."""
        model = rxnn_model(num_query_heads=2, num_kv_heads=6)
        folder = save_model(model, tmp_path / "model", layout="rxnn")
        found = load_file(folder / "model.safetensors")
        ours = model.state_dict()
        order = torch.tensor([0, 2, 4, 1, 3, 5])
        for projection, shape, dim in (("v_proj", (6, 10, 60), 0), ("out_proj", (60, 6, 10), 1)):
            name = f"layers.1.attention.{projection}.weight"
            theirs = found[f"model.{name}"].view(shape).index_select(dim, order)
            assert theirs.equal(ours[name].view(shape))
        torch.testing.assert_close(load_model(folder).state_dict(), ours, rtol=0, atol=0)

    @pytest.mark.parametrize("heads", [(2, 6), (1, 3), (3, 6)])
    def test_reverse_heads_compute_what_rxlm_computes(self, rxnn_model, tmp_path, heads):
        """Its `repeat` of query heads, against our neighbours."""
        models = pytest.importorskip("rxlm.experimental.models")
        model = rxnn_model(num_query_heads=heads[0], num_kv_heads=heads[1])
        found = load_file(save_model(model, tmp_path / "model", layout="rxnn") / "model.safetensors")
        theirs = models.ExperimentalAttentionTransformer(**config_to_rxnn(model.config)).eval()
        names = theirs.state_dict()
        theirs.load_state_dict({name: tensor for name, tensor in found.items() if name in names}, strict=False)
        tokens = torch.randint(41, (3, 17))
        with torch.no_grad():
            torch.testing.assert_close(theirs(tokens), model(tokens).logits, rtol=1e-5, atol=1e-5)

    def test_rotary_buffers_are_ignored(self, rxnn_model, tmp_path):
        model = rxnn_model()
        folder, name = save_model(model, tmp_path / "model", layout="rxnn"), "model.layers.1.attention.rope"
        buffers = {f"{name}.inv_freq": torch.zeros(5), f"{name}.cache": torch.zeros(3, 7)}
        change_tensors(folder / "model.safetensors", lambda tensors: tensors.update(buffers))
        torch.testing.assert_close(load_model(folder).state_dict(), model.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("model.layers.1.ff.experts.5.fc2.bias"), "missing model.layers.1.ff.experts.5.fc2.bias"),
            (
                lambda t: t.update({"model.layers.0.ff.experts.3.fc1.linear.weight": torch.zeros(13, 60)}),
                "model.layers.0.ff.experts.3.fc1.linear.weight is (13, 60), but must be (26, 60)",
            ),
        ],
        ids=["missing", "misshapen"],
    )
    def test_errors_use_the_names_of_rxnn(self, rxnn_model, tmp_path, change, message):
        folder = save_model(rxnn_model(moe=True), tmp_path / "model", layout="rxnn")
        change_tensors(folder / "model.safetensors", change)
        message = re.escape(f"model.safetensors does not fit its config.json: {message}")
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)


class TestConfig:
    @pytest.mark.parametrize("name", RXNN_PRESETS)
    def test_card_presets_there_and_back(self, name):
        assert config_from_rxnn(config_to_rxnn(preset(name))) == preset(name)

    @pytest.mark.parametrize("family", ["micro", "mini"])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_attention_types(self, family, variant):
        found = config_to_rxnn(of_family(family, variant))
        assert found["att_type"] == (variant if variant in ATT_TYPES else "sqa")
        assert (found["att_num_query_groups"] is None) == (variant in ("mha", "gqa", "mqa"))

    @pytest.mark.parametrize(
        ("changes", "heads"),
        [
            ({"att_type": "mha"}, (6, 6)),
            ({"att_type": "gqa"}, (6, 2)),
            ({"att_type": "gqa", "att_num_query_groups": 4}, (6, 2)),
            ({"att_type": "mqa"}, (6, 1)),
            ({"att_type": "sqa", "att_num_query_groups": 4}, (4, 2)),
            ({"att_type": "sqa", "att_num_query_groups": 1}, (1, 2)),
        ],
        ids=str,
    )
    def test_head_counts_of_each_attention_type(self, changes, heads):
        config = config_from_rxnn({**VALUES, **changes})
        assert (config.num_query_heads, config.num_kv_heads) == heads
        assert config.head_dim == 10

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"use_moe_ff": False}, {"num_experts": 0}),
            ({}, {"num_experts": 7, "experts_per_token": 2, "intermediate_size": 13}),
            ({}, {"norm": "rmsnorm", "final_norm": None}),
            ({"use_rms_norm": False}, {"norm": "layernorm", "final_norm": None}),
            ({"use_head_norm": True}, {"norm": "rmsnorm", "final_norm": "layernorm"}),
            ({"ff_activation": "gelu", "use_gated": False}, {"activation": "gelu", "gated": False}),
            ({"att_dropout": 0.2}, {"attention_dropout": 0.2, "feedforward_dropout": 0.1}),
            ({"use_flash_attention": True, "att_window_size": 128, "init_identity_norm": True}, {"context_length": 19}),
        ],
        ids=str,
    )
    def test_fields(self, changes, expected):
        config = config_from_rxnn({**VALUES, **changes}).to_dict()
        assert {name: config[name] for name in expected} == expected

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"att_type": "gma"}, "att_type is 'gma', but must be one of mha, gqa, mqa, sqa"),
            ({"att_type": "flex"}, "'flex', but must be one of mha, gqa, mqa, sqa"),
            ({"att_type": "sqa"}, "att_num_query_groups is None, but att_type 'sqa' needs"),
            ({"att_type": "sqa", "att_num_query_groups": 3}, "is 2, but must be a divisor of num_query_heads (3)"),
            ({"att_heads": 7}, "att_heads is 7, but must be a number that divides embed_dim (60)"),
            *(({"att_heads": n}, f"att_heads is {n}, but must be a number that divides") for n in (0, None)),
            ({"embed_dim": "60"}, "but must be a number that divides embed_dim ('60')"),
            ({"ff_activation": "mish"}, "activation is 'mish', but must be one of silu"),
            ({"ff_dim": None}, "intermediate_size is None, but must be a whole number"),
            ({"moe_kind": 3}, "unknown key 'moe_kind'; the keys of RxNN's config are att_dropout, "),
        ],
        ids=str,
    )
    def test_unusable_values_are_named(self, tmp_path, changes, message):
        (tmp_path / "config.json").write_text(json.dumps({**VALUES, **changes}))
        with pytest.raises(CheckpointError, match="config.json: .*" + re.escape(message)):
            load_model(tmp_path)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("tie_embeddings", True), ("head_bias", False), ("norm_eps", 1e-6), ("rope_theta", 500.0), ("window", 5)),
            *(("qkv_bias", True), ("attention_out_bias", False), ("feedforward_bias", False)),
            *(("final_norm", "rmsnorm"), ("head_dim", 8), ("head_dim", 512)),
        ],
    )
    def test_fields_that_rxnn_lacks_are_refused_by_name(self, rxnn_model, tmp_path, field, value):
        model = Decoder(rxnn_model().config.replace(**{field: value}))
        with pytest.raises(ConfigError, match=f"{field} is {value!r}, but RxNN's layout holds models with {field} "):
            save_model(model, tmp_path / "model", layout="rxnn")
        assert not any(tmp_path.iterdir())
