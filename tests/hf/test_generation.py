"""What transformers expects of `generate` with any language model, on our classes: the behaviours that its own tests
for generation ask for (no package has their module: see test_common.py), and what `generate` may start from.
"""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import CompileConfig, DynamicCache, StaticCache
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from sqat.hf import from_decoder

from .conftest import KINDS, PROMPTS, padded

NEW = 3  # tokens, where their number does not matter
LENGTH = max(map(len, PROMPTS))
CONTROLS = {
    "bad_words_ids": [[1, 0]],
    "repetition_penalty": 1.2,
    "remove_invalid_values": True,
    "eos_token_id": -1,  # never: lengths are as asked for
}
EVERYTHING = {
    "return_dict_in_generate": True,
    **{f"output_{name}": True for name in ("scores", "logits", "hidden_states", "attentions")},
}
SAMPLING = {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7}
GREEDY = {"do_sample": False}
EMBEDDINGS = {
    "max_new_tokens": 5,
    "eos_token_id": None,
    "return_dict_in_generate": True,
    "output_logits": True,
    **GREEDY,
}
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def eager(core):
    """With attention weights to be had."""
    model = from_decoder(core)
    model.set_attn_implementation("eager")
    return model


def check_everything(output, model, *, prompt, rows, cached):
    """Every output, a step each, has the shape that its documentation gives."""
    config = model.config
    steps = output.sequences.shape[1] - prompt
    for name in ("scores", "logits"):
        assert [tuple(values.shape) for values in getattr(output, name)] == [(rows, config.vocab_size)] * steps
    heads = max(config.num_query_heads, config.num_kv_heads)
    for step in range(steps):
        seen = prompt + step
        read = 1 if cached and step else seen
        assert [tuple(state.shape) for state in output.hidden_states[step]] == [(rows, read, config.hidden_size)] * 3
        keys = [attention.shape[3] for attention in output.attentions[step]]
        rolls = cached and config.layer_types[0] == "sliding_attention" and step
        assert keys == [min(seen, config.window) if rolls else seen] * 2
        assert [tuple(a.shape[:3]) for a in output.attentions[step]] == [(rows, heads, read)] * 2
    assert (output.past_key_values is not None) == cached
    if cached:
        check_cache(output.past_key_values, config, rows, output.sequences.shape[1] - 1)


def check_cache(cache, config, rows, length):
    """A layer each, (B, K, S, C); a window's keep one position less than it sees, for the token to come."""
    assert len(cache) == config.num_layers
    if config.layer_types[0] == "sliding_attention":
        length = min(length, config.window if isinstance(cache, StaticCache) else config.window - 1)
    for layer in cache.layers:
        assert tuple(layer.keys.shape) == (rows, config.num_kv_heads, length, config.head_dim)
        assert layer.values.shape == layer.keys.shape


def check_alike(one, other):
    """The same tokens from the same logits; or others, where the logits before them are so close that they tie."""
    steps = len(one.logits)
    for row, (first, second) in enumerate(zip(one.sequences, other.sequences, strict=True)):
        differ = (first != second)[-steps:].nonzero()
        last = int(differ[0]) + 1 if len(differ) else steps
        for step in range(last):
            torch.testing.assert_close(one.logits[step][row], other.logits[step][row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
@kinds
def test_all_methods_return_all_outputs(kind, beams, sampled, cached, tiny_model):
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


@kinds
def test_generating_from_nothing_begins_with_bos(kind, tiny_model):
    model = from_decoder(tiny_model(**kind))
    written = model.generate(max_new_tokens=NEW, eos_token_id=None, **GREEDY)
    assert written[0, 0] == model.config.bos_token_id == 2
    assert torch.equal(written, model.generate(torch.tensor([[2]]), max_new_tokens=NEW, eos_token_id=None, **GREEDY))


@pytest.mark.parametrize("way", ["another draft", "itself as the draft", "prompt lookup"])
@kinds
def test_speculation_is_greedy_and_returns_all_outputs(kind, way, tiny_model):
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
def test_speculation_samples(kind, tiny_model):
    if "window" in kind and "global_tokens" not in kind and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("older caches of windows do not go back far enough: transformers 5.17's own Mistral fails alike")
    model = from_decoder(tiny_model(**kind))
    written = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=6, assistant_model=model, **SAMPLING, **CONTROLS)
    assert written.shape == (1, 9)


def test_unknown_arguments_are_refused(tiny_model):
    model = from_decoder(tiny_model())
    with pytest.raises(ValueError, match=r"not used by the model: \['temprature'\]"):
        model.generate(torch.tensor(PROMPTS[:1]), temprature=0.5)


@pytest.mark.parametrize("kind", [{"moe": True}, {"window": 5, "global_tokens": 2}], ids=str)
def test_generating_compiled_is_one_graph_made_once(kind, tiny_model):
    """Of the backend only the tracing: what it would then compile is torch's own affair."""
    model = from_decoder(tiny_model(**kind, hidden_size=24, intermediate_size=16))
    batches = [padded(PROMPTS), padded([prompt[::-1] for prompt in PROMPTS])]
    options = {**EMBEDDINGS, "max_new_tokens": 4}
    expected = [model.generate(**batch, **options) for batch in batches]
    assert all(isinstance(output.past_key_values, DynamicCache) for output in expected)
    torch.compiler.reset()
    graphs = []

    def count(graph, _):
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


@pytest.mark.parametrize("beams", [1, 2])
@kinds
def test_embeddings_stand_for_their_tokens(kind, beams, tiny_model):
    model = from_decoder(tiny_model(**kind))
    inputs = padded(PROMPTS)
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    embeds = model.get_input_embeddings()(tokens)
    expected = model.generate(tokens, attention_mask=mask, num_beams=beams, **EMBEDDINGS)
    both = model.generate(tokens, inputs_embeds=embeds, attention_mask=mask, num_beams=beams, **EMBEDDINGS)
    alone = model.generate(inputs_embeds=embeds, attention_mask=mask, num_beams=beams, **EMBEDDINGS)
    assert torch.equal(both.sequences, expected.sequences)
    assert torch.equal(alone.sequences, expected.sequences[:, LENGTH:])


@kinds
def test_a_static_cache_is_as_long_as_the_text(kind, tiny_model):
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


@kinds
def test_going_on_from_a_cache_with_padding(kind, tiny_model):
    model = from_decoder(tiny_model(**kind))
    inputs = padded(PROMPTS)
    whole = model.generate(**inputs, **{**EMBEDDINGS, "max_new_tokens": 4})
    first = model.generate(**inputs, **{**EMBEDDINGS, "max_new_tokens": 3})
    longer = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
    rest = {"attention_mask": longer, "past_key_values": first.past_key_values}
    last = model.generate(first.sequences, **rest, **{**EMBEDDINGS, "max_new_tokens": 1})
    assert torch.equal(last.sequences[:, -1], whole.sequences[:, -1])
    torch.testing.assert_close(last.logits[0], whole.logits[3], rtol=1e-5, atol=1e-5)
    for one, other in zip(last.past_key_values.layers, whole.past_key_values.layers, strict=True):
        assert type(one) is type(other)
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)
