"""`generate` gives what this package's own generation gives, with every cache, and batched."""

import pytest
import torch

from sqat.generate import SamplingConfig, decode_tokens
from sqat.hf import from_decoder

from .conftest import KINDS, PROMPTS, padded


def ours(core, prompts, count):
    config = SamplingConfig(temperature=0, max_tokens=count)
    return torch.stack(list(decode_tokens(core, prompts, config)), dim=1).tolist()


def theirs(model, prompts, count, **options):
    inputs = padded(prompts)
    output = model.generate(**inputs, max_new_tokens=count, eos_token_id=None, **{"do_sample": False, **options})
    return output[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_greedy_batches_with_left_padding_write_what_we_write(kind, implementation, tiny_model):
    core = tiny_model(**kind)
    model = from_decoder(core)
    model.set_attn_implementation(implementation)
    expected = ours(core, PROMPTS, 11)
    assert theirs(model, PROMPTS, 11) == expected
    positions = (padded(PROMPTS)["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
    assert theirs(model, PROMPTS, 11, use_cache=False, position_ids=positions) == expected


def test_sampling_follows_its_seed_and_the_distribution(tiny_model):
    core = tiny_model()
    model = from_decoder(core)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(theirs(model, PROMPTS, 7, do_sample=True, temperature=0.9, top_p=0.9, top_k=0))
    assert draws[0] == draws[1] != ours(core, PROMPTS, 7)
    many = theirs(model, [PROMPTS[0]] * 1000, 1, do_sample=True, top_k=0)
    share = torch.bincount(torch.tensor(many).flatten(), minlength=41) / 1000
    expected = core(torch.tensor(PROMPTS[:1])).logits[0, -1].softmax(dim=-1)
    assert (share - expected).abs().max() < 0.05


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_beams_of_a_batch_are_those_of_each_row(kind, tiny_model):
    model = from_decoder(tiny_model(**kind))
    batched = theirs(model, PROMPTS, 5, num_beams=4)
    assert batched == [theirs(model, [prompt], 5, num_beams=4)[0] for prompt in PROMPTS]
    uncached = theirs(model, PROMPTS, 5, num_beams=4, use_cache=False)
    assert batched == uncached


def test_beam_search_finds_the_likeliest(tiny_model):
    """As many beams as there are tokens find, over two steps, what trying all of them finds."""
    core = tiny_model()
    prompt = torch.tensor([PROMPTS[0]])
    first = core(prompt).logits[0, -1].log_softmax(dim=-1)
    rows = torch.cat((prompt.expand(41, -1), torch.arange(41).unsqueeze(1)), dim=1)
    both = first.unsqueeze(1) + core(rows).logits[:, -1].log_softmax(dim=-1)
    best = divmod(int(both.argmax()), 41)
    assert theirs(from_decoder(core), PROMPTS[:1], 2, num_beams=41) == [list(best)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_chunks_through_a_cache_give_the_same_logits(kind, tiny_model, tokens):
    model = from_decoder(tiny_model(**kind))
    whole = model(tokens).logits
    output = model(tokens[:, :6], use_cache=True)
    parts = [output.logits]
    for chunk in (tokens[:, 6:7], tokens[:, 7:14], tokens[:, 14:]):  # one token, and several at once
        output = model(chunk, past_key_values=output.past_key_values)
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_ends_at_the_end_token(tiny_model):
    core = tiny_model()
    expected = ours(core, PROMPTS[:1], 9)[0]
    end = expected[4]
    model = from_decoder(core)
    output = model.generate(torch.tensor(PROMPTS[:1]), max_new_tokens=9, do_sample=False, eos_token_id=end)
    assert output[0, 3:].tolist() == expected[: expected.index(end) + 1]
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (2, 3)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_own_masks_are_taken_as_they_are(implementation, tiny_model, tokens):
    """A mask (B, 1, T, S) is taken as it is: here two documents in a row, as packing tells them apart."""
    core = tiny_model()
    model = from_decoder(core)
    model.set_attn_implementation(implementation)
    documents = (torch.arange(17) >= 6).long().expand(3, -1)
    own = documents[:, None, :, None] == documents[:, None, None]
    seen = own & torch.ones(17, 17, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.cat((torch.arange(6), torch.arange(11))).unsqueeze(0)
    found = model(tokens, attention_mask=mask, position_ids=positions).logits
    expected = core(tokens, positions=positions[0], documents=documents).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
