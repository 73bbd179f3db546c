"""What transformers expects of `generate` with any language model: the behaviours that its own tests for generation
ask for, on our classes. (Their module is in no package: see test_common.py.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import CompileConfig, DynamicCache, GenerationMixin
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from sqat.hf import from_decoder

from .conftest import PROMPTS, padded
from .generation import (
    CONTROLS,
    EMBEDDINGS,
    EVERYTHING,
    GREEDY,
    LENGTH,
    NEW,
    SAMPLING,
    Model,
    check_alike,
    check_everything,
    eager,
    kinds,
)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
@kinds
def test_all_methods_return_all_outputs(
    kind: dict[str, Any], beams: int, sampled: bool, cached: bool, tiny_model: Model
) -> None:
    model = eager(tiny_model(**kind))
    answers = 2 if sampled or beams > 1 else 1
    options = (
        {"num_beams": beams, "num_return_sequences": answers, "length_penalty": 2.0}
        if beams > 1
        else {"num_return_sequences": answers}
    )
    output = model.generate(
        **padded(PROMPTS),
        max_new_tokens=NEW,
        use_cache=cached,
        **options,
        **(SAMPLING if sampled else GREEDY),
        **CONTROLS,
        **EVERYTHING,
    )
    assert isinstance(output, GenerateBeamDecoderOnlyOutput if beams > 1 else GenerateDecoderOnlyOutput)
    assert tuple(output.sequences.shape) == (3 * answers, LENGTH + NEW)
    check_everything(output, model, prompt=LENGTH, rows=3 * max(beams, answers), cached=cached)


@pytest.mark.parametrize("beams", [1, 2])
@kinds
def test_a_cache_changes_nothing(kind: dict[str, Any], beams: int, tiny_model: Model) -> None:
    model = from_decoder(tiny_model(**kind))
    found = [
        model.generate(**padded(PROMPTS), max_new_tokens=7, num_beams=beams, use_cache=cached, **GREEDY, **CONTROLS)
        for cached in (True, False)
    ]
    assert torch.equal(*found)


@kinds
def test_generating_from_nothing_begins_with_bos(kind: dict[str, Any], tiny_model: Model) -> None:
    model = from_decoder(tiny_model(**kind))
    written = model.generate(max_new_tokens=NEW, eos_token_id=None, **GREEDY)
    assert written[0, 0] == model.config.bos_token_id == 2
    assert torch.equal(written, model.generate(torch.tensor([[2]]), max_new_tokens=NEW, eos_token_id=None, **GREEDY))


@pytest.mark.parametrize("way", ["another draft", "itself as the draft", "prompt lookup"])
@kinds
def test_speculation_is_greedy_and_returns_all_outputs(kind: dict[str, Any], way: str, tiny_model: Model) -> None:
    core = tiny_model(**kind)
    model = eager(core)
    prompt = torch.tensor([PROMPTS[1] + PROMPTS[1][:4]])  # repeats itself, for the lookup
    options = {"max_new_tokens": 6, **GREEDY, **CONTROLS, **EVERYTHING}
    expected = model.generate(prompt, **options)
    draft = eager(tiny_model(**kind)) if way == "another draft" else model
    draft.generation_config.num_assistant_tokens = 2
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    speculation = {"prompt_lookup_num_tokens": 2} if way == "prompt lookup" else {"assistant_model": draft}
    found = model.generate(prompt, **options, **speculation)
    assert torch.equal(found.sequences, expected.sequences)
    check_alike(found, expected)
    for output in (found, expected):
        assert len(output.scores) == len(output.logits) == len(output.hidden_states) == len(output.attentions) == 6
        assert output.past_key_values.get_seq_length() == 13 + 6 - 1


@kinds
def test_speculation_samples(kind: dict[str, Any], tiny_model: Model) -> None:
    if "window" in kind and "global_tokens" not in kind and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("older caches of windows do not go back far enough: transformers 5.17's own Mistral fails alike")
    model = from_decoder(tiny_model(**kind))
    written = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=6, assistant_model=model, **SAMPLING, **CONTROLS)
    assert written.shape == (1, 9)


def test_kept_logits_do_not_change_what_is_written(tiny_model: Model) -> None:
    model = from_decoder(tiny_model())
    options = {"max_new_tokens": 5, **GREEDY}
    assert torch.equal(
        model.generate(**padded(PROMPTS), logits_to_keep=0, **options), model.generate(**padded(PROMPTS), **options)
    )
    assert "logits_to_keep" in inspect.signature(model.forward).parameters


@pytest.mark.parametrize(
    "options",
    [GREEDY, SAMPLING, {"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}],
    ids=str,
)
def test_generating_leaves_configurations_alone(options: dict[str, Any], tiny_model: Model) -> None:
    model = from_decoder(tiny_model())
    before = model.config.to_dict(), model.generation_config.to_dict()
    model.generate(**padded(PROMPTS), max_new_tokens=NEW, **options)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before


def test_unknown_arguments_are_refused(tiny_model: Model) -> None:
    model = from_decoder(tiny_model())
    with pytest.raises(ValueError, match=r"not used by the model: \['temprature'\]"):
        model.generate(torch.tensor(PROMPTS[:1]), temprature=0.5)


def test_prepared_inputs_carry_what_they_are_given(tiny_model: Model) -> None:
    model = from_decoder(tiny_model())
    assert GenerationMixin in type(model).__bases__
    given = {"position_ids": torch.arange(3).unsqueeze(0), "output_attentions": True, "numeric": 42}
    prepared = model.prepare_inputs_for_generation(input_ids=torch.tensor(PROMPTS[:1]), **given)
    assert torch.equal(prepared["input_ids"], torch.tensor(PROMPTS[:1]))
    assert (prepared["output_attentions"], prepared["numeric"]) == (True, 42)


def test_generating_compiled_is_one_graph_made_once(tiny_model: Model) -> None:
    """Of the backend only the tracing: what it would then compile is torch's own affair."""
    model = from_decoder(tiny_model(moe=True, hidden_size=24, intermediate_size=16))
    batches = [padded(PROMPTS), padded([prompt[::-1] for prompt in PROMPTS])]
    options = {**EMBEDDINGS, "max_new_tokens": 4}
    expected = [model.generate(**batch, **options) for batch in batches]
    assert all(isinstance(output.past_key_values, DynamicCache) for output in expected)
    torch.compiler.reset()
    graphs: list[int] = []

    def count(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    settings = CompileConfig(fullgraph=True, dynamic=False, backend=count, mode=None)
    settings._compile_all_devices = True
    found = [
        model.generate(**batch, cache_implementation="static", compile_config=settings, **options) for batch in batches
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.past_key_values.is_compileable
        check_alike(one, other)
    assert len(graphs) == 1
