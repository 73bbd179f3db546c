"""How to load a model, by the form that its files have. The Python of the forms that need a folder runs in it."""

from __future__ import annotations

FORMS = ("sqat", "rxnn", "native", "stock", "mixed", "gguf", "onnx")  # mixed: see sqat.convert.modeling_mixed_heads

_OF_TRANSFORMERS = ("native", "stock", "mixed")
LIBRARIES = {**dict.fromkeys(_OF_TRANSFORMERS, "transformers"), "gguf": "gguf", "onnx": "onnx"}  # else sqat


def loading_section(form: str, repo_id: str | None, *, tokenizer: bool) -> str:
    """Code and commands.

    Args:
        form: one of `FORMS`.
        repo_id: where the model will be; `None`: not known.
        tokenizer: whether there is one beside the model.
    """
    if form == "gguf":
        return f"With llama.cpp:\n\n{_block('sh', _GGUF)}"
    if form == "onnx":
        return f"With onnxruntime:\n\n{_block('python', _ONNX)}"
    if form in _OF_TRANSFORMERS:
        return _with_transformers(form, repo_id, tokenizer)
    text = f"With sqat:\n\n{_with_sqat(repo_id, tokenizer)}\n\n"
    if form == "rxnn":
        code = _RXNN.format(folder=_name(repo_id))
        return f"{text}The layout is that of RxNN, whose import paths sqat provides, too:\n\n{_block('python', code)}"
    code = _REGISTERED.format(folder=_name(repo_id))
    return f"{text}As a model of transformers, which needs sqat for it:\n\n{_block('python', code)}"


def _name(repo_id: str | None) -> str:
    return '"."  # or the repository\'s id' if repo_id is None else f'"{repo_id}"'


def _with_sqat(repo_id: str | None, tokenizer: bool) -> str:
    """The command line's way and Python's; without a tokenizer there is nothing to write with."""
    folder = "." if repo_id is None else "model"
    commands = [] if repo_id is None else [f"sqat pull {repo_id} {folder}"]
    commands.append(f'sqat generate {folder} "Once upon a time"' if tokenizer else f"sqat info {folder}")
    code = (_SQAT if tokenizer else _SQAT_MODEL).format(folder=folder)
    return _block("sh", "\n".join(commands)) + "\n\n" + _block("python", code)


def _with_transformers(form: str, repo_id: str | None, tokenizer: bool) -> str:
    options = "" if form == "stock" else ", trust_remote_code=True"
    lines = [
        "from transformers import AutoModelForCausalLM" + (", AutoTokenizer" if tokenizer else ""),
        "",
        f"folder = {_name(repo_id)}",
        f"model = AutoModelForCausalLM.from_pretrained(folder{options})",
    ]
    if tokenizer:
        lines += [
            f"tokenizer = AutoTokenizer.from_pretrained(folder{options})",
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))",
        ]
    code = _block("python", "\n".join(lines))
    if form == "stock":
        return f"With transformers alone:\n\n{code}"
    why = "The modelling code is beside the weights; `trust_remote_code=True` lets it run, so read it first."
    if form == "mixed":
        return f"With transformers. {why} After `import sqat.convert` it is not needed.\n\n{code}"
    return f"With transformers. {why}\n\n{code}\n\nWith sqat:\n\n{_with_sqat(repo_id, tokenizer)}"


def _block(language: str, code: str) -> str:
    return f"```{language}\n{code.strip()}\n```"


_SQAT_MODEL = """
import sqat

model = sqat.load_model("{folder}")
"""

_SQAT = """
import sqat
from sqat.generate import generate

model, tokenizer = sqat.load_model("{folder}"), sqat.Tokenizer.load("{folder}")
[answer] = generate(model, tokenizer, "Once upon a time", sqat.SamplingConfig(max_tokens=50))
print(answer.text)
"""

_REGISTERED = """
import sqat.hf
from transformers import AutoModelForCausalLM

folder = {folder}
model = AutoModelForCausalLM.from_pretrained(folder)
"""

_RXNN = """
from rxnn.experimental.models import ExperimentalAttentionTransformer

folder = {folder}
model = ExperimentalAttentionTransformer.from_pretrained(folder)
"""

_GGUF = 'llama-cli -m model.gguf -p "Once upon a time"'

_ONNX = """
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
tokens = numpy.array([[2, 5, 11, 23]])  # (batch, tokens)
[logits] = session.run(["logits"], {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)})
"""
