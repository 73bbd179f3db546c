"""Plans are read strictly, and matched budgets come out equal."""

from pathlib import Path

import pytest

from sqat.compare.plan import ComparePlan, read_plan, share_budget, training_flops_per_token
from sqat.errors import ConfigError
from sqat.run_config import RunConfig, read_yaml

CONFIGS = Path(__file__).parents[2] / "src" / "sqat" / "configs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "tiny"}, r"ComparePlan.family is 'tiny', but must be one of micro, mini, small, extra_small"),
        ({"match": "luck"}, r"ComparePlan.match is 'luck', but must be one of tokens, flops, time"),
        ({"variants": []}, r"ComparePlan.variants is \(\), but must be a list of at least one"),
        ({"variants": ["gqa", "sqb"]}, r"variant is 'sqb', but must be one of mha"),
        ({"variants": ["gqa", "gqa"]}, r"but must be a list of different names"),
        ({"variants": ["gqa", 7]}, r"ComparePlan.variants holds 7, but must hold names, or name: \{variant: …"),
        ({"variants": ["gqa", {"a/b": {"variant": "sqa"}}]}, r"the name 'a/b' must be of letters, digits"),
        ({"variants": ["gqa", {"": {"variant": "sqa"}}]}, r"the name '' must be of letters, digits"),
        ({"variants": ["gqa", {"more": {"variant": "sqa", "vocab_size": 311}}]}, r"must be of one vocab_size"),
        (
            {"variants": ["gqa", {"long": {"variant": "sqa", "context_length": 61}}]},
            r"one context_length, for the same",
        ),
        ({"reference": "mha"}, r"ComparePlan.reference is 'mha', but must be one of the variants: gqa, sqa"),
        ({"budget": -1}, r"ComparePlan.budget is -1.0, but must be positive"),
        ({"seeds": [1, 1]}, r"ComparePlan.seeds is \(1, 1\), but must be a list of different numbers"),
        ({"processes": 0}, r"ComparePlan.processes is 0, but must be at least 1"),
        ({"timing": {"rounds": 0}, "match": "time"}, r"TimingPlan.rounds is 0, but must be at least 1 where match is"),
        ({"name": "../up"}, r"the name '../up' must be of letters, digits"),
        ({"model": 3}, r"ComparePlan.model is 3, but must be"),
        ({"model": {"window_size": 3}}, r"unknown field 'window_size'"),
        ({"model": {"hidden_size": "abc"}}, r"ModelConfig.hidden_size is 'abc', but must be a whole number"),
        ({"model": {"head_dim": 0}}, r"ModelConfig.head_dim is 0, but must be at least 1"),
        ({"model": {"head_dim": None}}, r"ModelConfig.head_dim is None, but must be a whole number"),
        ({"train": {"batchsize": 3}}, r"unknown field 'batchsize'; did you mean 'batch_size'"),
        ({"train": {"max_tokens": 5}}, r"TrainConfig.max_tokens is 5, but must be null in a comparison: budget, with"),
        ({"sedes": [0]}, r"unknown field 'sedes'; did you mean 'seeds'"),
    ],
)
def test_wrong_plans_are_refused(tiny_plan, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_plan(**changes)


def test_a_variant_may_have_fields_of_its_own(tiny_plan):
    plan = tiny_plan(variants=["gqa", {"deep": {"variant": "sqa", "num_layers": 3}}], reference="deep")
    shallow, deep = plan.models()
    assert (deep.name, deep.model.num_layers, deep.model.num_query_heads) == ("deep", 3, 4)
    assert (shallow.model.num_layers, shallow.model.num_query_heads, shallow.model.num_kv_heads) == (1, 8, 2)


def test_other_sizes_have_other_head_counts(tiny_plan):
    plan = tiny_plan(model={**tiny_plan().model, "hidden_size": 16})
    assert [(m.model.num_query_heads, m.model.num_kv_heads) for m in plan.models()] == [(4, 1), (2, 1)]
    with pytest.raises(ConfigError, match="num_heads is 6, but variant 'gqa' needs a positive multiple of 4"):
        tiny_plan(model={**tiny_plan().model, "hidden_size": 24})


def test_a_plan_survives_writing_and_reading(tiny_plan):
    plan = tiny_plan(match="flops", budget=1e9)
    assert ComparePlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("path", sorted((CONFIGS / "compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_plans_of_the_repository(path):
    plan = read_plan(path)
    assert path.read_text().startswith(f"# sqat compare configs/compare/{path.name}")
    assert plan.name == path.stem
    assert len(plan.models()) == len(plan.variants)


@pytest.mark.parametrize("path", sorted((CONFIGS / "card").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_cards_own_runs(path):
    run = RunConfig.from_dict(read_yaml(path))
    assert path.read_text().startswith(f"# sqat train configs/card/{path.name}")
    assert (run.data.mode, run.data.padding_as_target, run.train.router_loss) == ("rows", True, "rxnn")
    assert (run.train.batch_size * run.train.gradient_accumulation, run.train.epochs, run.train.decay_all) == (
        256,
        5,
        True,
    )


SECONDS = {"gqa": [2.0, 4.0, 3.0], "sqa": [1.0, 2.0, 1.5]}


class TestBudget:
    def steps(self, plan):
        return {variant.name: variant.steps for variant in share_budget(plan, 10, 100.0, SECONDS)}

    def test_tokens(self, tiny_plan):
        assert self.steps(tiny_plan()) == {"gqa": 12, "sqa": 12}
        assert self.steps(tiny_plan(budget=700)) == {"gqa": 7, "sqa": 7}

    def test_flops(self, tiny_plan):
        plan = tiny_plan(match="flops", train={"max_steps": 1000})
        found, cost = self.steps(plan), {v.name: training_flops_per_token(v.model) for v in plan.models()}
        assert found["gqa"] == 1000 < found["sqa"]
        assert abs(found["sqa"] * cost["sqa"] - 1000 * cost["gqa"]) <= cost["sqa"]

    def test_time(self, tiny_plan):
        assert self.steps(tiny_plan(match="time")) == {"gqa": 12, "sqa": 24}
        assert self.steps(tiny_plan(match="time", budget=30)) == {"gqa": 10, "sqa": 20}

    def test_too_small(self, tiny_plan):
        with pytest.raises(ConfigError, match="budget is 3 tokens, but a step of gqa alone takes 100"):
            self.steps(tiny_plan(budget=3))
