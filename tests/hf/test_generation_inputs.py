"""What `generate` may start from, as test_generation.py: embeddings, caches of every kind, positions, masks, types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import QuantizedCache, StaticCache

from sqat.hf import SQATForCausalLM, from_decoder

from .conftest import PROMPTS, padded
from .generation import CONTROLS, EMBEDDINGS, GREEDY, LENGTH, NEW, Model, check_alike, check_cache, kinds


@pytest.mark.parametrize("beams", [1, 2])
@kinds
def test_embeddings_stand_for_their_tokens(kind: dict[str, Any], beams: int, tiny_model: Model) -> None:
    model = from_decoder(tiny_model(**kind))
    inputs = padded(PROMPTS)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    embeds = model.get_input_embeddings()(tokens)
    expected = model.generate(tokens, attention_mask=mask, num_beams=beams, **EMBEDDINGS)
    both = model.generate(tokens, inputs_embeds=embeds, attention_mask=mask, num_beams=beams, **EMBEDDINGS)
    alone = model.generate(inputs_embeds=embeds, attention_mask=mask, num_beams=beams, **EMBEDDINGS)
    assert torch.equal(both.sequences, expected.sequences)
    assert torch.equal(alone.sequences, expected.sequences[:, LENGTH:])
    other = model.generate(tokens, inputs_embeds=torch.rand_like(embeds), attention_mask=mask, **EMBEDDINGS)
    for step in range(5):
        assert beams > 1 or not torch.allclose(other.logits[step], expected.logits[step])


@kinds
def test_a_static_cache_is_as_long_as_the_text(kind: dict[str, Any], tiny_model: Model) -> None:
    model = from_decoder(tiny_model(**kind))
    inputs = padded(PROMPTS)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    options = {**EMBEDDINGS, "max_new_tokens": 7, "disable_compile": True}
    expected = model.generate(**inputs, **options)
    static = model.generate(**inputs, cache_implementation="static", **options)
    mask = inputs["attention_mask"]
    from_embeds = model.generate(inputs_embeds=embeds, attention_mask=mask, cache_implementation="static", **options)
    check_alike(static, expected)
    for output in (static, from_embeds):
        assert isinstance(output.past_key_values, StaticCache)
        assert torch.equal(output.sequences[:, -7:], expected.sequences[:, -7:])
        check_cache(output.past_key_values, model.config, 3, LENGTH + 7 - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@kinds
def test_low_precision_with_both_back_ends(
    kind: dict[str, Any], dtype: torch.dtype, tiny_model: Model, tmp_path: Path
) -> None:
    from_decoder(tiny_model(**kind)).save_pretrained(tmp_path)
    inputs = padded(PROMPTS)
    found = []
    for implementation in ("eager", "sdpa"):
        model = SQATForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation=implementation)
        with torch.no_grad():
            logits = model(**inputs).logits[:, -1].float()
        found.append(logits.softmax(dim=-1))
        for cache in (None, "static"):
            output = model.generate(
                **inputs, max_new_tokens=NEW, cache_implementation=cache, disable_compile=True, eos_token_id=None
            )
            assert output.shape == (3, LENGTH + NEW)
    torch.testing.assert_close(*found, rtol=0.0, atol=0.03)


@pytest.mark.parametrize("embedded", [False, True])
@kinds
def test_going_on_from_a_cache_with_padding(kind: dict[str, Any], embedded: bool, tiny_model: Model) -> None:
    model = from_decoder(tiny_model(**kind))
    inputs = padded(PROMPTS)
    mask, look_up = inputs["attention_mask"], model.get_input_embeddings()
    if embedded:
        inputs = {"inputs_embeds": look_up(inputs["input_ids"]), "attention_mask": mask}
    whole = model.generate(**inputs, **{**EMBEDDINGS, "max_new_tokens": 4})
    first = model.generate(**inputs, **{**EMBEDDINGS, "max_new_tokens": 3})
    longer = torch.nn.functional.pad(mask, (0, 3), value=1)
    if embedded:
        rest = {"inputs_embeds": torch.cat((inputs["inputs_embeds"], look_up(first.sequences)), dim=1)}
    else:
        rest = {"input_ids": first.sequences}
    last = model.generate(
        **rest, attention_mask=longer, past_key_values=first.past_key_values, **{**EMBEDDINGS, "max_new_tokens": 1}
    )
    assert torch.equal(last.sequences[:, -1], whole.sequences[:, -1])
    torch.testing.assert_close(last.logits[0], whole.logits[3], rtol=1e-5, atol=1e-5)
    for one, other in zip(last.past_key_values.layers, whole.past_key_values.layers, strict=True):
        assert type(one) is type(other)
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)


@kinds
def test_positions_are_those_that_the_mask_tells(kind: dict[str, Any], tiny_model: Model) -> None:
    model = from_decoder(tiny_model(**kind))
    inputs = padded(PROMPTS)
    positions = (inputs["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
    options = {"max_new_tokens": 5, "eos_token_id": None, **GREEDY}
    expected = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, position_ids=positions, **options), expected)


@kinds
def test_much_left_padding_changes_nothing(kind: dict[str, Any], tiny_model: Model, tokens: torch.Tensor) -> None:
    model = from_decoder(tiny_model(**kind))
    mask = torch.cat((torch.zeros(3, 32), torch.ones(3, 17)), dim=1).long()
    wide = torch.nn.functional.pad(tokens, (32, 0))
    positions = (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)
    with torch.no_grad():
        found = model(wide, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        torch.testing.assert_close(found, model(tokens).logits[:, -1], rtol=1e-5, atol=1e-5)


@kinds
def test_one_prefix_for_several_last_tokens(kind: dict[str, Any], tiny_model: Model) -> None:
    """A mask of one's own, in which the last three tokens do not see each other, is three rows in one."""
    if "window" in kind:
        pytest.skip("a mask of one's own replaces the window's, whose distances it cannot tell")
    model = from_decoder(tiny_model(**kind))
    prefix, ends = [10, 11, 12], [13, 14, 15]
    rows = torch.tensor([[*prefix, end] for end in ends])
    seen = torch.ones(6, 6).tril().bool()
    seen[3:, 3:] = torch.eye(3).bool()
    mask = torch.zeros(1, 1, 6, 6).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.tensor([[0, 1, 2, 3, 3, 3]])
    with torch.no_grad():
        found = model(torch.tensor([prefix + ends]), attention_mask=mask, position_ids=positions).logits[0, 3:]
        torch.testing.assert_close(found, model(rows).logits[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_quantised_cache(backend: str, tiny_model: Model) -> None:
    pytest.importorskip("optimum.quanto" if backend == "quanto" else "hqq", reason=f"{backend} is not installed")
    model = from_decoder(tiny_model(head_dim=16))
    settings = {"backend": backend, "nbits": 8 if backend == "hqq" else 4, "q_group_size": 8, "residual_length": 128}
    options = {"max_new_tokens": 5, "cache_implementation": "quantized", "return_dict_in_generate": True}
    output = model.generate(**padded(PROMPTS), cache_config=settings, **options, **CONTROLS)
    assert output.sequences.shape == (3, LENGTH + 5)
    assert isinstance(output.past_key_values, QuantizedCache)
    with pytest.raises(ValueError, match="nbits"):
        model.generate(**padded(PROMPTS), cache_config={**settings, "nbits": 60}, **options)
