"""ONNX files: onnxruntime computes what we compute, for any batch, length and padding."""

import re
import sys

import pytest
import torch

from sqat.checkpoint import save_model
from sqat.errors import ConfigError
from sqat.formats import export
from sqat.hf import from_decoder

from .conftest import QUIRKS


@pytest.mark.slow
def test_logits_and_the_code_of_the_card(tiny_model, tmp_path, monkeypatch):
    """Of a model with everything that is rare; docs/ecosystem.md exports a plain one."""
    pytest.importorskip("onnxscript", reason="onnxscript is an optional extra: pip install onnx onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra 'interop'")
    heads = {"num_query_heads": 3, "num_kv_heads": 6}
    core = tiny_model(moe=True, **QUIRKS, **heads, window=5, global_tokens=2, num_layers=1)
    export(save_model(core, tmp_path / "checkpoint"), tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for rows, length in ((3, 17), (1, 2), (1, 1)):
        tokens = torch.randint(4, 41, (rows, length))
        mask = torch.ones_like(tokens)
        mask[0, : length // 3] = 0
        (found,) = session.run(None, {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = from_decoder(core)(tokens, attention_mask=mask).logits
            torch.testing.assert_close(
                torch.from_numpy(found)[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5
            )
            torch.testing.assert_close(torch.from_numpy(found)[1:], core(tokens[1:]).logits, rtol=1e-5, atol=1e-5)
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec(code, names)  # as its reader would
    with torch.no_grad():
        expected = core(torch.from_numpy(names["tokens"])).logits
    torch.testing.assert_close(torch.from_numpy(names["logits"]), expected, rtol=1e-5, atol=1e-5)


def test_missing_packages_are_named(tiny_model, tmp_path, monkeypatch):
    folder = save_model(tiny_model(), tmp_path / "checkpoint")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="ONNX files need the package onnx"):
        export(folder, tmp_path / "onnx", "onnx")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match="GGUF files need the package gguf"):
        export(folder, tmp_path / "gguf", "gguf")
