"""`generation`: tokens per second of one stream and of many, and the wait for the first token.

Shape letters: B rows, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from benchmarks.harness.peers import qwen3, rxlm_model, silenced
from benchmarks.harness.results import Result, Table
from benchmarks.harness.settings import Context
from benchmarks.harness.timing import Candidate, Sample, alternate
from torch import Tensor, nn

from sqat import Decoder
from sqat.bench import synchronize
from sqat.generate import SamplingConfig, decode_tokens

ONE, MANY, FIRST = "generation, one stream", "generation, many streams", "time to first token"
GREEDY, SAMPLED = "sqat greedy", "sqat sampled"
TRANSFORMERS, RXLM = "transformers generate", "rxlm sampler"
TOKENS, STREAMS, PROMPT, LONG_PROMPT = 240, 64, 8, 8192
QUICK = {"tokens": 5, "streams": 3, "long": 37}
TEMPERATURE, TOP_P = 0.1, 0.9  # what the card's snippet samples with
NOTES = [
    "float32, random weights; the first call does not count and has a column of its own",
    f"'{SAMPLED}' and '{RXLM}': temperature {TEMPERATURE}, top-p {TOP_P}, as the card's snippet; others greedy",
]

Generate = Callable[[Tensor, int], int]  # from prompts (B, T) and a number of new tokens to how many were made


def measure_generation(context: Context) -> Result:
    """One stream, many streams, first token."""
    quick = context.settings.quick
    tokens, streams, long = QUICK.values() if quick else (TOKENS, STREAMS, LONG_PROMPT)
    generators = _generators(context)
    batched = {name: make for name, make in generators.items() if name != RXLM}  # its sampler takes one row
    greedy = {name: make for name, make in generators.items() if name != SAMPLED}
    tables = [
        _rates(context, Table(ONE, "tokens/s", baseline=TRANSFORMERS), generators, 1, tokens),
        _rates(context, Table(MANY, "tokens/s", baseline=TRANSFORMERS), batched, streams, tokens),
        _first_token(context, greedy, long),
    ]
    tables[0].notes += [f"{tokens} new tokens after {PROMPT}"]
    tables[1].notes += [f"{streams} streams of {tokens} new tokens"]
    return Result("generation", tables, context.absent("transformers", "rxlm"))


def _generators(context: Context) -> dict[str, Generate]:
    config, device = context.settings.config, context.settings.device
    torch.manual_seed(0)
    model = Decoder(config).to(device).eval()
    found: dict[str, Generate] = {
        GREEDY: _sqat(model, temperature=0.0),
        SAMPLED: _sqat(model, temperature=TEMPERATURE),
    }
    if context.has("transformers"):
        found[TRANSFORMERS] = _transformers(qwen3(config).to(device).eval())
    if context.has("rxlm"):
        found[RXLM] = _rxlm(rxlm_model(config).to(device).eval(), device)
    return found


def _rates(context: Context, table: Table, generators: dict[str, Generate], streams: int, tokens: int) -> Table:
    """Tokens per second, all streams together."""
    device, vocabulary = context.settings.device, context.settings.config.vocab_size
    prompts_BT = torch.randint(4, vocabulary, (streams, PROMPT), device=device)
    candidates: dict[str, Candidate] = {
        name: _Rate(generate, prompts_BT, tokens, device) for name, generate in generators.items()
    }
    table.notes += NOTES
    return alternate(table, candidates, **context.alternation)


class _Rate:
    def __init__(self, generate: Generate, prompts_BT: Tensor, tokens: int, device: str) -> None:
        self.generate, self.prompts_BT, self.tokens, self.device = generate, prompts_BT, tokens, device

    def __call__(self) -> Sample:
        synchronize(self.device)
        start = time.perf_counter()
        made = self.generate(self.prompts_BT, self.tokens)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        return Sample(made / seconds, {"seconds": seconds})


def _first_token(context: Context, generators: dict[str, Generate], length: int) -> Table:
    """Seconds from a long prompt to its first new token."""
    device, vocabulary = context.settings.device, context.settings.config.vocab_size
    prompt_1T = torch.randint(4, vocabulary, (1, length), device=device)

    def waiting(generate: Generate) -> Candidate:
        rate = _Rate(generate, prompt_1T, 1, device)
        return lambda: Sample(rate().figures["seconds"])

    table = Table(FIRST, "s", higher_is_better=False, baseline=TRANSFORMERS)
    table.notes.append(f"a prompt of {length:,} tokens")
    candidates = {name: waiting(generate) for name, generate in generators.items()}
    return alternate(table, candidates, **context.alternation)


def _sqat(model: Decoder, temperature: float) -> Generate:
    def generate(prompts_BT: Tensor, tokens: int) -> int:
        config = SamplingConfig(temperature=temperature, top_p=TOP_P, max_tokens=tokens, seed=0)
        steps = [token_B.clone() for token_B in decode_tokens(model, prompts_BT.tolist(), config)]
        return torch.stack(steps).cpu().numel()

    return generate


def _transformers(model: nn.Module) -> Generate:
    def generate(prompts_BT: Tensor, tokens: int) -> int:
        mask = torch.ones_like(prompts_BT)
        made = model.generate(  # type: ignore[operator]
            prompts_BT,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
        )
        return made[:, prompts_BT.shape[1] :].cpu().numel()

    return generate


def _rxlm(model: nn.Module, device: str) -> Generate:
    """As the card calls it, with its temperature and top-p and its tokenizer's mask; no token ends the answer."""
    with silenced():
        from rxlm.transformers.sampler import Sampler

    sampler = Sampler(model, torch.device(device), end_token_id=-1)

    def generate(prompts_BT: Tensor, tokens: int) -> int:
        mask = torch.ones_like(prompts_BT)
        return len(
            list(sampler(prompts_BT, temperature=TEMPERATURE, top_p=TOP_P, max_seq_len=tokens, attention_mask=mask))
        )

    return generate
