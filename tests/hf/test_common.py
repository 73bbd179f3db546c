"""transformers' own tests for models, from its source distribution, on our classes.

`make interop-setup` fetches them into .venv. A source distribution lacks the mixin for generation: test_generation.py
has its behaviours in our words.
"""

import importlib
import sys
import types
import unittest
from pathlib import Path

import pytest
import torch
from transformers.models.auto import modeling_auto

from sqat.hf import SQATConfig, SQATForCausalLM, SQATModel

from .conftest import QUIRKS

PACKAGE = "transformers_tests"
ROOT = Path(__file__).resolve().parents[2]
ABSENT = {  # what their modules import, and a source distribution has not
    "exporters.test_export": ("ExportTesterMixin", "ExportGenerateTesterMixin"),
    "generation.test_utils": ("GenerationTesterMixin",),
}


def load(folder):
    """Their module of common tests, with empty mixins for those that are not there."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name, mixins in ABSENT.items():
        module, outer = types.ModuleType(name), types.ModuleType(name.split(".")[0])
        outer.__path__ = []
        for mixin in mixins:
            setattr(module, mixin, type(mixin, (), {}))
        for root in (PACKAGE, "tests"):  # by both of which they import each other
            sys.modules[f"{root}.{outer.__name__}"], sys.modules[f"{root}.{name}"] = outer, module
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


_folders = sorted((ROOT / ".venv" / "transformers").glob("transformers-*/tests"))
if not _folders:
    pytest.skip("transformers' tests are not here: make interop-setup", allow_module_level=True)
pytest.importorskip("parameterized", reason="parameterized is in the extra 'interop'")
common = load(_folders[-1])
modeling_auto.MODEL_MAPPING_NAMES["sqat"] = "SQATModel"  # by which they know what kind of model a class is
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["sqat"] = "SQATForCausalLM"

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "Dense": {},
    "Experts": {"num_experts": 8, "window": 61},
    "Card": {"num_experts": 8, **QUIRKS, "init": "normal"},
    "Window": {"window": 5},
    "GlobalTokens": {"window": 5, "global_tokens": 2},
}
OF_EXPERTS = (
    *(f"test_eager_matches_batched_and_grouped_inference_{dtype}" for dtype in ("0_fp16", "1_fp32", "2_bf16")),
    "test_output_router_logits_from_config",
)


class Tester:
    """What their tests ask for models and inputs."""

    __test__ = False  # not one itself

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, 99

    def __init__(self, changes):
        self.changes = changes

    def get_config(self):
        return SQATConfig(**{**SIZES, **self.changes})

    def prepare_config_and_inputs_for_common(self):
        ids = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.tril(torch.ones_like(ids))}


def make_tests(name, changes):
    def set_up(self):
        self.model_tester = Tester(changes)

    contents = {
        "all_model_classes": (SQATModel, SQATForCausalLM),
        "all_generative_model_classes": (SQATForCausalLM,),
        "pipeline_model_mapping": None,
        "setUp": set_up,
        "pytestmark": [pytest.mark.slow],
    }
    if "num_experts" not in changes:  # they take every model of a file with experts for one that has some
        contents |= dict.fromkeys(OF_EXPERTS)
    if name != "Experts":  # 28 loads of a model: of the kind that has experts and tied embeddings
        contents["test_bc_torch_dtype"] = None
    return type(f"Test{name}", (common.ModelTesterMixin, common.GenerationTesterMixin, unittest.TestCase), contents)


globals().update({f"Test{name}": make_tests(name, changes) for name, changes in KINDS.items()})
