"""Tiny stock models of every architecture, random, of distinct sizes, and a checkpoint with a tokenizer."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from sqat.convert import choose_heads, convert, plan_conversion
from sqat.convert.files import quiet, read_model, write_conversion
from sqat.data.tokenizer import train_tokenizer

SIZES = {
    "vocab_size": 307,
    "hidden_size": 24,  # Llama's must be a multiple of its heads
    "intermediate_size": 13,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 10,
    "max_position_embeddings": 61,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ARCHITECTURES = {
    "llama": ("LlamaConfig", {"attention_bias": True}),
    "mistral": ("MistralConfig", {"sliding_window": 7}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {}),
    # What multiplies experts on a CPU takes rows of a multiple of 16 bytes alone.
    "mixtral": ("MixtralConfig", {"num_local_experts": 5, "intermediate_size": 12}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
}


def tiny_stock_config(name, **changes):
    kind, extra = ARCHITECTURES[name]
    return getattr(transformers, kind)(**{**SIZES, **extra, **changes})


@pytest.fixture
def stock_config():
    return tiny_stock_config


@pytest.fixture
def stock_model():
    """Every parameter is off its default, so that no norm or bias can be skipped unseen."""

    def build(name, **changes):
        model = AutoModelForCausalLM.from_config(tiny_stock_config(name, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model.eval()

    return build


@pytest.fixture
def stock_folder(tmp_path, stock_model):
    """A checkpoint with its tokenizer."""

    def write(name="qwen3", folder="pretrained", **changes):
        path = tmp_path / folder
        with quiet():
            stock_model(name, **changes).save_pretrained(path)
        texts = [f"The cat number {n} sat on mat {n * 7}. It was happy, and so it purred." for n in range(50)]
        train_tokenizer(texts, SIZES["vocab_size"]).save(path)
        return path

    return write


@pytest.fixture
def converted(stock_folder, tmp_path):
    """`converted("qwen3", query_heads=4)`: a model with fewer heads, and the checkpoint it was written to."""

    def write(name, **changes):
        folder, out = stock_folder(name), tmp_path / "out"
        model = read_model(folder)
        plan = plan_conversion(model.config, **changes)
        heads = choose_heads(model, plan)
        result = convert(model, plan, heads=heads)
        out.mkdir()
        write_conversion(result, plan, heads, folder, "a model", out)
        return result, out

    return write


@pytest.fixture
def rows():
    return torch.randint(4, SIZES["vocab_size"], (5, 17))
