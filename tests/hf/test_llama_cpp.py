"""GGUF files: llama.cpp reads them, and writes what we write."""

import json

import pytest
import tokenizers
import torch

from sqat.checkpoint import save_model
from sqat.data.stories import story
from sqat.data.tokenizer import Tokenizer, train_tokenizer
from sqat.errors import CheckpointError, ConfigError
from sqat.formats import export
from sqat.generate import SamplingConfig, decode_tokens

gguf = pytest.importorskip("gguf", reason="gguf is an optional extra: pip install gguf")

PROMPTS = ["Once upon a time", "The cat's 12 red balls,\n\n  and naïve 🙂 dogs"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((story(i, seed=0, split="train") for i in range(30)), 400)


@pytest.fixture
def exported(tiny_model, tokenizer, tmp_path):
    def build(moe=False, **changes):
        core = tiny_model(moe, vocab_size=409, context_length=67, **changes)
        folder = save_model(core, tmp_path / "checkpoint")
        tokenizer.save(folder)
        export(folder, tmp_path / "out", "gguf")
        return core, tmp_path / "out" / "model.gguf"

    return build


def llama_cpp(path, prompt, count):
    """How many tokens llama.cpp reads in a prompt, and the bytes of those that it writes after it, greedily. (It gives
    numbers of tokens only where they are whole characters.)
    """
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is in the extra 'interop'")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_predict, params.n_ctx, params.n_gpu_layers = count, 128, 0
    params.warmup, params.n_parallel = False, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    request = {"prompt": prompt, "max_tokens": count, "temperature": 0.0, "n_probs": 1, "ignore_eos": True}
    answer = xllamacpp.Server(params).handle_completions(request)
    assert answer["usage"]["completion_tokens"] == count
    content = answer["choices"][0]["logprobs"]["content"]
    return answer["usage"]["prompt_tokens"], b"".join(bytes(entry["bytes"]) for entry in content)


KINDS = [
    {},
    {"hidden_size": 24, "tie_embeddings": False, "qkv_bias": True, "feedforward_bias": True, "rope_theta": 500.0},
    {"moe": True, "norm_eps": 0.01},
    {"moe": True, "num_query_heads": 4, "num_kv_heads": 1, "experts_per_token": 3},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_llama_cpp_writes_what_we_write(kind, exported, tokenizer):
    core, path = exported(**kind)
    for prompt in PROMPTS:
        ids = [2, *tokenizer.encode(prompt)]
        ours = torch.stack(list(decode_tokens(core, [ids], SamplingConfig(temperature=0, max_tokens=12))), dim=1)[0]
        expected = b"".join(tokenizer.token_bytes(token) for token in ours.tolist())
        assert llama_cpp(path, prompt, 12) == (len(ids), expected)


def test_what_the_file_says(exported, tokenizer):
    core, path = exported(moe=True)
    assert "llama-cli -m model.gguf" in path.with_name("README.md").read_text()
    reader = gguf.GGUFReader(path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "llama"
    assert (said["llama.attention.head_count"], said["llama.attention.head_count_kv"]) == (6, 3)
    assert (said["llama.expert_count"], said["llama.expert_used_count"]) == (7, 2)
    assert (said["llama.attention.key_length"], said["llama.context_length"]) == (10, 67)
    assert said["tokenizer.ggml.tokens"][:4] == ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    assert said["tokenizer.ggml.tokens"][tokenizer.vocab_size :] == [
        f"[UNUSED {i}]" for i in range(tokenizer.vocab_size, 409)
    ]
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}  # tied
    count = sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert count == sum(parameter.numel() for parameter in core.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 5}, "window is 5, but must be None for GGUF"),
        ({"activation": "gelu"}, "activation is 'gelu', but must be 'silu' for GGUF"),
        ({"head_bias": True}, "head_bias is True"),
    ],
)
def test_what_llama_cpp_does_not_compute(changes, message, exported, tmp_path):
    with pytest.raises(ConfigError, match=message):
        exported(**changes)
    assert not (tmp_path / "out").exists()


def test_without_a_tokenizer(tiny_model, tmp_path):
    folder = save_model(tiny_model(vocab_size=409), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        export(folder, tmp_path / "out", "gguf")


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "puts a space before a text"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer is 'Lowercase', but must be None"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}},
            "pre_tokenizer is 'Sequence', but must be 'ByteLevel'",
        ),
        ({"pre_tokenizer": {**BYTES, "use_regex": False}}, r"pre_tokenizer\.use_regex is False, but must be True"),
        ({"model": {"ignore_merges": True}}, r"model\.ignore_merges is True, but must be False"),
    ],
)
def test_tokenizers_that_a_file_cannot_hold(changes, message, tiny_model, tokenizer, tmp_path):
    folder = save_model(tiny_model(vocab_size=409, hidden_size=24), tmp_path / "checkpoint")
    said = json.loads(tokenizer.backend.to_str())
    for name, value in changes.items():
        said[name] = {**(said[name] or {}), **value}
    Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(said))).save(folder)
    with pytest.raises(ConfigError, match=message):
        export(folder, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()
