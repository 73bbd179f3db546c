"""transformers' own tests for models, from its source distribution, on our classes.

`make interop-setup` fetches them into .venv; TRANSFORMERS_TESTS may name the folder `tests` of another copy. Only what
is in that folder is run: a source distribution lacks the mixin for generation, which a clone of the repository has
(`TRANSFORMERS_TESTS=transformers/tests`; test_generation.py has its behaviours in our words).
"""

import importlib
import os
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


def find_folder():
    named = os.environ.get("TRANSFORMERS_TESTS")
    found = [Path(named)] if named else sorted((ROOT / ".venv" / "transformers").glob("transformers-*/tests"))
    return found[-1] if found else None


def load(folder):
    """Their module of common tests, with empty mixins for those that are not there."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name, mixins in ABSENT.items():
        if folder.joinpath(*name.split(".")).with_suffix(".py").exists():
            module = importlib.import_module(f"{PACKAGE}.{name}")
        else:
            module = types.ModuleType(f"{PACKAGE}.{name}")
            outer = types.ModuleType(f"{PACKAGE}.{name.split('.')[0]}")
            outer.__path__ = []
            sys.modules[outer.__name__], sys.modules[module.__name__] = outer, module
            for mixin in mixins:
                setattr(module, mixin, type(mixin, (), {}))
        sys.modules[f"tests.{name.split('.')[0]}"] = sys.modules[module.__name__.rpartition(".")[0]]
        sys.modules[f"tests.{name}"] = module  # by which they import each other
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


_folder = find_folder()
if _folder is None:
    pytest.skip("transformers' tests are not here: make interop-setup", allow_module_level=True)
pytest.importorskip("parameterized", reason="parameterized is in the extra 'interop'")
common = load(_folder)
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
OF_WHOLE_CACHES = (  # they count on a cache of the whole text: with a window of 5, Mistral fails these as well
    *("test_assisted_decoding_matches_greedy_search_0_random", "test_assisted_decoding_matches_greedy_search_1_same"),
    *("test_assisted_decoding_sample", "test_beam_search_generate_dict_outputs_use_cache"),
    *("test_generate_compilation_all_outputs", "test_generate_from_inputs_embeds_with_static_cache"),
    *("test_generate_with_static_cache", "test_greedy_generate_dict_outputs_use_cache", "test_past_key_values_format"),
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
    if name == "Window":
        contents |= dict.fromkeys(OF_WHOLE_CACHES)
    return type(f"Test{name}", (common.ModelTesterMixin, common.GenerationTesterMixin, unittest.TestCase), contents)


globals().update({f"Test{name}": make_tests(name, changes) for name, changes in KINDS.items()})
