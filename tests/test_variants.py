"""The table of variants, and the presets: the card's to the parameter."""

import pytest
import torch

from sqat.cost import parameters
from sqat.errors import ConfigError
from sqat.model import Decoder
from sqat.variants import VARIANTS, attention_name, head_counts, of_family, preset, variant_name

HEADS = {  # variant: (Hq, Hkv) where full attention has 8 heads, and 16
    "mha": ((8, 8), (16, 16)),
    "gqa": ((8, 2), (16, 4)),
    "mqa": ((8, 1), (16, 1)),
    "sqa": ((4, 2), (8, 4)),
    "ssqa": ((4, 4), (8, 8)),
    "xsqa": ((2, 2), (4, 4)),
    "xsmqa": ((2, 1), (4, 1)),
    "lsqa": ((6, 2), (12, 4)),
    "rsqa": ((2, 4), (4, 8)),
}

CARD = {  # preset: (Hq, Hkv, parameters), as the original has them
    "gqa-ref-micro": (8, 2, 8_666_248),
    "mqa-ref-micro": (8, 1, 8_641_672),
    "sqat-mm": (4, 2, 8_567_944),
    "ssqat-mm": (4, 4, 8_617_096),
    "xsqat-mm": (2, 2, 8_518_792),
    "mha-ref-mini": (16, 16, 11_966_224),
    "gqa-ref-mini": (16, 4, 11_179_792),
    "mqa-ref-mini": (16, 1, 10_983_184),
    "sqat-m": (8, 4, 10_655_504),
    "ssqat-m": (8, 8, 10_917_648),
    "xsqat-m": (4, 4, 10_393_360),
    "xsmqat-m": (4, 1, 10_196_752),
}


def built_size(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


def test_head_counts():
    assert {variant: tuple(head_counts(variant, heads) for heads in (8, 16)) for variant in VARIANTS} == HEADS
    message = "variant is 'sqaa', but must be one of mha, gqa, mqa, sqa, ssqa, xsqa, xsmqa, lsqa, rsqa"
    with pytest.raises(ConfigError, match=message):
        head_counts("sqaa", 8)


@pytest.mark.parametrize(
    ("variant", "heads", "multiple"),
    [("gqa", 6, 4), ("sqa", 6, 4), ("ssqa", 7, 2), ("xsmqa", 3, 4), ("lsqa", 2, 4), ("mha", 0, 1), ("mqa", -4, 1)],
)
def test_heads_that_do_not_divide(variant, heads, multiple):
    message = f"num_heads is {heads}, but variant '{variant}' needs a positive multiple of {multiple}"
    with pytest.raises(ConfigError, match=message):
        head_counts(variant, heads)


@pytest.mark.parametrize("name", CARD)
def test_card_presets_have_the_card_s_sizes(name):
    config = preset(name)
    heads = (config.num_query_heads, config.num_kv_heads)
    assert (*heads, parameters(config).total) == CARD[name]
    assert built_size(config) == CARD[name][-1]
    assert config.head_dim == 16


BEYOND = {  # preset: (Hq, Hkv, window, global tokens)
    "mha-ref-micro": (8, 8, None, 0),
    "xsmqat-mm": (2, 1, None, 0),
    "lsqat-mm": (6, 2, None, 0),
    "rsqat-mm": (2, 4, None, 0),
    "lsqat-m": (12, 4, None, 0),
    "rsqat-m": (4, 8, None, 0),
    "swsqat-mm": (4, 2, 64, 0),
    "flexsqat-mm": (4, 2, 64, 4),
    "swsqat-m": (8, 4, 128, 0),
    "flexsqat-m": (8, 4, 128, 4),
}


@pytest.mark.parametrize("name", BEYOND)
def test_presets_beyond_the_card_differ_in_attention_alone(name):
    config = preset(name)
    family = preset("mha-ref-mini" if name.endswith(("-m", "-mini")) else "gqa-ref-micro")
    found = (config.num_query_heads, config.num_kv_heads, config.window, config.global_tokens)
    assert found == BEYOND[name]
    same = {"num_query_heads": family.num_query_heads, "num_kv_heads": family.num_kv_heads}
    assert config.replace(**same, window=None, global_tokens=0) == family
    assert parameters(config).total == built_size(config)


def test_attention_in_words(tiny_config):
    names = {"rsqat-m": "rsqa", "swsqat-m": "sqa, window 128", "flexsqat-mm": "sqa, window 64, 4 global tokens"}
    assert {name: attention_name(preset(name)) for name in names} == names
    custom = preset("sqat-mm").replace(num_query_heads=6, num_kv_heads=3)
    assert (variant_name(custom), attention_name(custom)) == (None, "custom")
    assert variant_name(tiny_config(num_query_heads=5, num_kv_heads=1, hidden_size=70)) is None


@pytest.mark.parametrize("family", ["micro", "mini", "small"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_name_is_the_inverse_of_head_counts(family, variant):
    assert variant_name(of_family(family, variant)) == variant
    if family == "small":
        assert 14e6 < parameters(of_family(family, variant)).total == built_size(of_family(family, variant)) < 20e6


@pytest.mark.parametrize(
    ("name", "hint"),
    [("mha-ref-mimi", "did you mean 'mha-ref-mini'"), ("gpt", "the presets are sqat-s, "), ("", "the presets are")],
)
def test_unknown_preset(name, hint):
    assert preset("SQAT-mm") == preset("sqat-mm")  # case does not matter
    with pytest.raises(ConfigError, match=f"unknown preset '{name}'; {hint}"):
        preset(name)
