"""From logits to tokens: which may be chosen, how often, and by whose draw."""

import re

import pytest
import torch

from sqat.errors import ConfigError
from sqat.generate.sampling import RowSampler, SamplingConfig, draw, draw_naive, keep_likeliest, penalise

B, V = 5, 41

INVALID = [
    *(("temperature", value, "0 (greedy) or above") for value in (-1.0, float("nan"))),
    ("top_k", 0, "at least 1, or null"),
    *(("top_p", value, "above 0 and at most 1") for value in (0.0, 1.5)),
    *(("min_p", value, "between 0 (no limit) and 1") for value in (-0.1, 1.1)),
    ("repetition_penalty", 0.0, "positive"),
    ("max_tokens", 0, "at least 1"),
    *(("seed", value, "between 0 and 2^63 - 1, or null") for value in (-1, 2**63)),
    *(("stop", value, "a tuple") for value in (("",), "end", (3,))),
]


def draw_probs():
    return (3 * torch.randn(B, V)).softmax(dim=-1)


def choose(logits_BV, **options):
    """One choice for every row."""
    return RowSampler(SamplingConfig(**options), [[0]] * len(logits_BV), logits_BV.shape[1])(logits_BV).tolist()


class TestConfig:
    @pytest.mark.parametrize(("field", "value", "right"), INVALID)
    def test_unusable_values_are_refused_by_name(self, field, value, right):
        with pytest.raises(ConfigError, match=re.escape(f"SamplingConfig.{field} is {value!r}, but must be {right}")):
            SamplingConfig(**{field: value})

    def test_dictionaries_hold_everything_and_stop_is_a_list_of_texts(self):
        for stop in ((), ("one",), ("one", "two")):
            config = SamplingConfig(temperature=0.5, top_k=3, seed=7, stop=stop)
            assert SamplingConfig.from_dict(config.to_dict()) == config
            assert SamplingConfig.from_dict({"stop": list(stop)}).stop == stop
        for stop in ("one", [1], 3):
            with pytest.raises(ConfigError, match=r"SamplingConfig\.stop is .*, but must be "):
                SamplingConfig.from_dict({"stop": stop})


class TestKeepLikeliest:
    @staticmethod
    def by_definition(probs, top_k, top_p, min_p):
        ranked = sorted(range(len(probs)), key=lambda token: -probs[token])[:top_k]
        reached, kept = 0.0, set()
        for token in ranked:
            if reached < top_p * sum(probs[other] for other in ranked) and probs[token] >= min_p * probs[ranked[0]]:
                kept.add(token)
            reached += probs[token]
        return [p if token in kept else 0.0 for token, p in enumerate(probs)]

    @pytest.mark.parametrize("top_k", [None, 1, 7, V, 100])
    @pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-9])
    @pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
    def test_equals_the_definition(self, top_k, top_p, min_p):
        probs_BV = draw_probs()
        found = keep_likeliest(probs_BV, SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p))
        assert found.tolist() == [self.by_definition(row, top_k, top_p, min_p) for row in probs_BV.tolist()]


class TestDraw:
    """What is computed for few tokens is what is computed for all."""

    @pytest.mark.parametrize("top_k", [None, 1, 7, V, 100])
    @pytest.mark.parametrize("top_p", [1.0, 1 - 1e-6, 0.9, 0.3, 1e-9])
    @pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
    @pytest.mark.parametrize("sharpness", [0.1, 3.0, 30.0])
    def test_equals_the_definition(self, top_k, top_p, min_p, sharpness):
        probs_BV = (sharpness * torch.randn(97, V)).softmax(dim=-1)
        uniform_B = torch.rand(97, dtype=torch.float64)
        config = SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p)
        assert draw(probs_BV, uniform_B, config).equal(draw_naive(probs_BV, uniform_B, config))

    @pytest.mark.parametrize("top_p", [1.0, 0.75, 0.5, 0.25, 0.1])
    @pytest.mark.parametrize("values", [[1.0], [2.0, 1.0], [1.0, 0.0], [4.0, 2.0, 1.0, 1.0]], ids=str)
    def test_equal_probabilities(self, top_p, values):
        """Of those at the edge of the nucleus, the first ids are kept."""
        weights_BV = torch.tensor(values)[torch.randint(len(values), (97, V))]
        weights_BV[:, 5] = 1.0
        probs_BV = weights_BV / weights_BV.sum(dim=-1, keepdim=True)
        uniform_B = torch.rand(97, dtype=torch.float64)
        config = SamplingConfig(top_p=top_p)
        assert draw(probs_BV, uniform_B, config).equal(draw_naive(probs_BV, uniform_B, config))

    @pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
    @pytest.mark.parametrize(
        "limits", [{"top_p": 0.8, "top_k": 11}, {"top_p": 0.8}, {"top_p": 1.0, "min_p": 0.1}], ids=str
    )
    def test_extreme_draws(self, uniform, limits):
        config = SamplingConfig(**limits)
        probs_BV, uniform_B = draw_probs(), torch.full((B,), uniform, dtype=torch.float64)
        tokens_B = draw(probs_BV, uniform_B, config)
        assert (keep_likeliest(probs_BV, config).gather(1, tokens_B.unsqueeze(1)) > 0).all()
        assert tokens_B.equal(draw_naive(probs_BV, uniform_B, config))

    @pytest.mark.parametrize("rows", [1, 37])
    @pytest.mark.parametrize("limits", [{"top_p": 1.0}, {"top_p": 0.8}, {"top_k": 3}, {"min_p": 0.5}], ids=str)
    def test_what_is_no_number_gives_some_token(self, rows, limits):
        """A model that diverged still answers."""
        probs_BV, uniform_B = torch.full((rows, V), torch.nan), torch.rand(rows, dtype=torch.float64)
        for way in (draw, draw_naive):
            tokens_B = way(probs_BV, uniform_B, SamplingConfig(**limits))
            assert ((tokens_B >= 0) & (tokens_B < V)).all()


class TestPenalty:
    def test_seen_tokens_become_less_likely(self):
        logits, seen = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]]), torch.tensor([[True, True, False, False, True]])
        assert penalise(logits, seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0, 0.0]]

    def test_prompt_and_answer_count_as_seen(self):
        logits = torch.arange(V, 0, -1.0).expand(2, V)  # token 0 is the likeliest, then 1, …
        sampler = RowSampler(SamplingConfig(temperature=0, repetition_penalty=1e6), [[0, 2], [1, 1]], V)
        assert [sampler(logits).tolist() for _ in range(4)] == [[1, 0], [3, 2], [4, 3], [5, 4]]
        sampler = RowSampler(SamplingConfig(temperature=0), [[0], [0]], V)  # no penalty by default
        assert [sampler(logits).tolist() for _ in range(2)] == [[0, 0], [0, 0]]


class TestChoice:
    @pytest.mark.parametrize("temperature", [0, 1e-3, 1e-9, 1e-38])
    def test_temperatures_of_zero_or_little_more_take_the_likeliest(self, temperature):
        logits = 10 * torch.randn(B, V)
        assert choose(logits, temperature=temperature, seed=1) == logits.argmax(dim=-1).tolist()

    def test_of_equally_likely_the_first_and_impossible_ones_never(self):
        logits = torch.zeros(2, V)
        logits[1, [3, 17]] = 1.0
        assert choose(logits, temperature=0) == [0, 3]
        logits = torch.full((2000, V), -torch.inf)
        logits[:, [3, 17]] = 0.0
        assert {*choose(logits, temperature=1.0, seed=5)} == {3, 17}

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("limits", [{"top_p": 1.0}, {"top_p": 0.8, "top_k": 6}], ids=str)
    def test_frequencies_are_the_probabilities(self, temperature, limits):
        rows, logits = 4000, torch.randn(11)
        config = SamplingConfig(temperature=temperature, seed=3, **limits)
        counts = torch.tensor(choose(logits.expand(rows, 11), **config.to_dict())).bincount(minlength=11)
        probs = keep_likeliest((logits / temperature).softmax(dim=-1).unsqueeze(0), config)[0]
        expected, possible = rows * probs / probs.sum(), probs > 0
        assert not counts[~possible].any()
        chi_square = ((counts - expected).square() / expected)[possible].sum()
        freedom = int(possible.sum()) - 1
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


class TestSeeds:
    def sequence(self, rows, row, **options):
        """Ten choices of one row among several."""
        logits = torch.zeros(rows, V)
        sampler = RowSampler(SamplingConfig(temperature=1.0, **options), [[0]] * rows, V)
        return [sampler(logits)[row].item() for _ in range(10)]

    def test_a_seed_fixes_the_draws_and_row_i_draws_from_seed_plus_i(self):
        assert self.sequence(1, 0, seed=7) == self.sequence(1, 0, seed=7)
        assert self.sequence(1, 0, seed=7) != self.sequence(1, 0, seed=8)
        assert self.sequence(1, 0) != self.sequence(1, 0)  # every time another where there is none
        assert [self.sequence(5, i, seed=7) for i in range(5)] == [self.sequence(1, 0, seed=7 + i) for i in range(5)]
        assert self.sequence(2, 1, seed=2**63 - 1) == self.sequence(1, 0, seed=0)  # the last seed has rows after it

    def test_torch_s_own_generator_is_left_alone(self):
        before = torch.get_rng_state()
        for seed in (None, 7):
            self.sequence(3, 0, seed=seed)
        assert torch.get_rng_state().equal(before)
