"""The description of a run: YAML, overrides, presets and their changes."""

import re

import pytest

from sqat.errors import ConfigError
from sqat.run_config import DataConfig, RunConfig, TrainConfig, read_yaml, with_overrides
from sqat.variants import preset

INVALID = [
    (DataConfig, "mode", "rows of text", "one of packed, rows"),
    (DataConfig, "encoding_errors", "ignore", "one of strict, replace"),
    (DataConfig, "padding_as_target", True, 'false where mode is "packed"'),
    (DataConfig, "limit", 0, "at least 1, or null"),
    (DataConfig, "validation_limit", -3, "at least 1, or null"),
    *((TrainConfig, name, 0, "at least 1") for name in ("batch_size", "gradient_accumulation", "log_every")),
    *((TrainConfig, name, 0, "at least 1") for name in ("keep_checkpoints", "max_skipped_steps")),
    (TrainConfig, "epochs", None, "set, where max_steps is null"),
    *((TrainConfig, name, 0, "at least 1, or null") for name in ("epochs", "max_steps", "evaluate_every")),
    *((TrainConfig, name, -1, "at least 1, or null") for name in ("max_tokens", "checkpoint_every")),
    *((TrainConfig, "learning_rate", rate, "positive, such as 2e-3") for rate in (0.0, float("nan"))),
    *((TrainConfig, "min_learning_rate", rate, "between 0 and learning_rate (0.002)") for rate in (0.5, -1e-4)),
    *((TrainConfig, name, -1, "at least 0") for name in ("warmup_steps", "seed")),
    *((TrainConfig, name, -0.1, "at least 0") for name in ("weight_decay", "router_loss_weight")),
    (TrainConfig, "beta1", 1.0, "at least 0 and below 1"),
    (TrainConfig, "beta2", -0.5, "at least 0 and below 1"),
    (TrainConfig, "clip_norm", 0.0, "positive, or null"),
    (TrainConfig, "precision", "fp16", "one of auto, bf16, float32"),
    (TrainConfig, "router_loss", "switch", "one of balanced, rxnn, none"),
    (TrainConfig, "device", "gpu", "auto, cpu, cuda, cuda:N or mps"),
]


@pytest.mark.parametrize(("kind", "field", "value", "right"), INVALID)
def test_unusable_values_are_refused_by_name(kind, field, value, right):
    with pytest.raises(ConfigError, match=re.escape(f"{kind.__name__}.{field} is {value!r}, but must be {right}")):
        kind(**{field: value})


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": None, "max_steps": 7},
        {"device": "cuda:1"},
        {"clip_norm": None},
        {"min_learning_rate": 2e-3},
        {"evaluate_every": None, "checkpoint_every": None},
    ],
)
def test_null_and_limits_are_allowed(values):
    assert TrainConfig.from_dict(values).to_dict() == {**TrainConfig().to_dict(), **values}


def test_padding_can_be_a_target_in_rows_and_a_former_name_is_read():
    assert DataConfig(mode="rows", padding_as_target=True).padding_as_target
    assert TrainConfig(router_loss="card") == TrainConfig(router_loss="rxnn")


class TestModel:
    def test_a_preset_a_changed_preset_or_fields(self, tiny_config):
        changed = {"preset": "xsqat-m", "hidden_size": 96, "rope_theta": "1e4"}
        for model, expected in [
            ("sqat-mm", preset("sqat-mm")),
            (changed, preset("xsqat-m").replace(hidden_size=96, rope_theta=1e4)),
            (tiny_config().to_dict(), tiny_config()),
            (tiny_config(), tiny_config()),
        ]:
            assert RunConfig.from_dict({"model": model}).model == expected


class TestRun:
    def test_sections_are_read_and_dictionaries_hold_everything(self):
        values = {"model": "sqat-mm", "data": {"source": "a.txt", "limit": "5"}, "train": {"learning_rate": "1e-3"}}
        run = RunConfig.from_dict(values)
        assert run.data == DataConfig(source="a.txt", limit=5)
        assert run.train == TrainConfig(learning_rate=1e-3)
        assert RunConfig.from_dict(run.to_dict()) == run

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"model": "sqat-mn"}, "unknown preset 'sqat-mn'; did you mean 'sqat-m"),
            ({"model": {"preset": "gqa-ref-micr"}}, "unknown preset 'gqa-ref-micr'; did you mean 'gqa-ref-micro'?"),
            ({"model": {"preset": "sqat-mm", "hiden_size": 5}}, "field 'hiden_size'; did you mean 'hidden_size'?"),
            ({"model": {"preset": "sqat-mm", "num_kv_heads": 3}}, "num_kv_heads is 3, but must be a divisor"),
            ({"model": {"vocab_size": 5}}, "field 'hidden_size' is missing"),
            ({"model": 7}, "ModelConfig: expected a mapping of fields, found 7"),
            ({}, "RunConfig: field 'model' is missing"),
            ([], "RunConfig: expected a mapping with model, data and train, found []"),
            ({"model": "sqat-mm", "trian": {}}, "RunConfig: unknown field 'trian'; did you mean 'train'?"),
            ({"model": "sqat-mm", "train": {"lr": 1}}, "TrainConfig: unknown field 'lr'"),
            ({"model": "sqat-mm", "train": {"max_steps": 10**40}}, f"max_steps is {10**40}, but must be at most 9,22"),
            ({"model": "sqat-mm", "train": {"batch_size": "many"}}, "batch_size is 'many', but must be a whole number"),
            ({"model": "sqat-mm", "data": None}, "DataConfig: expected a mapping of fields, found None"),
        ],
    )
    def test_errors(self, values, message):
        with pytest.raises(ConfigError, match=re.escape(message)):
            RunConfig.from_dict(values)


class TestYaml:
    def test_reading(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text("model: {preset: sqat-mm, num_layers: 3}\ntrain:\n  learning_rate: 2e-3\n  clip_norm: null\n")
        run = RunConfig.from_dict(read_yaml(path))
        assert run.model == preset("sqat-mm").replace(num_layers=3)
        assert run.train == TrainConfig(learning_rate=2e-3, clip_norm=None)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a: [1", "is not valid YAML"),
            (b"a: 2001-99-99", "is not valid YAML: month must be in 1..12"),
            (b"!!python/object/apply:os.system [echo]", "is not valid YAML: could not determine a constructor"),
            (b"\xff\xfe\xfa", "is not valid YAML"),
            (b"- a\n- b", "holds list, but must hold a mapping with model, data and train"),
            (b"", "holds NoneType, but must hold a mapping"),
        ],
    )
    def test_damaged(self, tmp_path, content, message):
        path = tmp_path / "run.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(f"{path} {message}")):
            read_yaml(path)

    @pytest.mark.parametrize("name", ["configs/card/sqat-mm.yaml", "card/sqat-mm.yaml"])
    def test_packaged_configurations_are_found_from_every_folder(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        assert read_yaml(name)["model"] == "sqat-mm"
        own = tmp_path / name
        own.parent.mkdir(parents=True)
        own.write_text("model: sqat-s")
        assert read_yaml(name) == {"model": "sqat-s"}
        with pytest.raises(
            ConfigError, match=r"configs/sqat-mm.yaml; this package has configs/card/gqa-ref-micro.yaml, "
        ):
            read_yaml("configs/sqat-mm.yaml")
        with pytest.raises(ConfigError, match="no configuration file"):
            read_yaml("configs/../config.py")

        with pytest.raises(ConfigError, match=r"no configuration file at .*nowhere\.yaml"):
            read_yaml(tmp_path / "nowhere.yaml")


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("train.seed=5", {"model": "sqat-mm", "train": {"epochs": 2, "seed": 5}}),
            ("train.epochs=3", {"model": "sqat-mm", "train": {"epochs": 3}}),
            ("train.epochs=", {"model": "sqat-mm", "train": {"epochs": None}}),
            ("train.device=cuda:1", {"model": "sqat-mm", "train": {"epochs": 2, "device": "cuda:1"}}),
            ("data.source=a=b", {"model": "sqat-mm", "train": {"epochs": 2}, "data": {"source": "a=b"}}),
            ("model=gqa-s", {"model": "gqa-s", "train": {"epochs": 2}}),
            ("model.num_layers=2", {"model": {"preset": "sqat-mm", "num_layers": 2}, "train": {"epochs": 2}}),
        ],
    )
    def test_assignments(self, override, expected):
        assert with_overrides({"model": "sqat-mm", "train": {"epochs": 2}}, [override]) == expected

    def test_later_overrides_win_and_the_original_stays(self):
        values = {"model": {"preset": "sqat-mm"}, "train": {"epochs": 2}}
        overrides = ["train.seed=1", "train.epochs=3", "train.seed=2", "model.num_layers=2", "data.limit=5"]
        assert with_overrides(values, overrides)["train"] == {"seed": 2, "epochs": 3}
        assert values == {"model": {"preset": "sqat-mm"}, "train": {"epochs": 2}}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("train.epochs", "must look like train.learning_rate=1e-3"),
            ("=3", "must look like"),
            ("train.=3", "must look like"),
            (".epochs=3", "must look like"),
            ("train.epochs.more=3", "epochs is 2, which has no fields"),
            ("train.epochs=[3", "the value is not valid YAML"),
        ],
    )
    def test_errors(self, override, message):
        with pytest.raises(ConfigError, match=re.escape(f"override {override!r}") + ".*" + re.escape(message)):
            with_overrides({"train": {"epochs": 2}}, [override])


def test_text_for_a_number_is_named_in_python_too():
    with pytest.raises(ConfigError, match=r"TrainConfig.batch_size is '3', but must not be text"):
        TrainConfig(batch_size="3")
