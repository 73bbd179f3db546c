"""Makes the folders beside this file. It ran once, at commit ef21ff1: newer code must read what that code wrote."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from sqat.convert.uptrain_config import UptrainConfig

import sqat
from sqat.checkpoint import save_model
from sqat.convert import convert, plan_conversion
from sqat.convert.files import read_model
from sqat.convert.uptrain import start_uptraining
from sqat.data.stories import story
from sqat.data.tokenizer import train_tokenizer
from sqat.run_config import RunConfig
from sqat.train import start_run
from sqat.train.callbacks import Callback

HERE = Path(__file__).parent
VOCABULARY = 271
MODEL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 6,
    "intermediate_size": 5,
    "context_length": 23,
}
BIASES = dict.fromkeys(("attention_out_bias", "feedforward_bias", "head_bias"), True)
RXNN = {"hidden_size": 24, "num_experts": 3, "tie_embeddings": False, "norm_eps": None, "final_norm": None, **BIASES}
TRAIN = {"batch_size": 5, "precision": "float32", "tensorboard": False, "device": "cpu", "learning_rate": 3e-3}
RUN = {"max_steps": 9, "log_every": 2, "evaluate_every": 3, "checkpoint_every": 2, "keep_checkpoints": 1}
DATA = {"source": "text.txt", "validation": "validation.txt", "cache_dir": "cache"}
STOCK = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


class Interrupt(Callback):
    """After step 5, between two log lines and two checkpoints; the best checkpoint is that of step 3."""

    def on_step(self, trainer: object) -> None:
        if trainer.state.step == 5:
            trainer.interrupt("to be resumed")


def finish(start: object, config: object, name: str) -> list[dict[str, float]]:
    """Interrupt a run, keep its folder, and return the log of a resumed copy: what newer code has to get, too."""
    start(config, name, callbacks=[Interrupt()]).train()
    shutil.copytree(name, HERE / name)
    (HERE / name / ".lock").unlink()
    start(config, name, resume=True).train()
    return [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    texts = [story(i, seed=0, split="train")[:97] for i in range(61)]
    for folder in (Path(), HERE):
        (folder / "text.txt").write_text("\n\n".join(texts[7:]))
        (folder / "validation.txt").write_text("\n\n".join(texts[:7]))
        train_tokenizer(texts, VOCABULARY).save(folder)
    logs, logits = {}, {}
    for name, extra in (("dense", {"feedforward_bias": True}), ("moe", {"num_experts": 3, "feedforward_dropout": 0.1})):
        train = {**TRAIN, **RUN, **({} if name == "moe" else {"evaluate_every": None})}
        config = {"model": {**MODEL, **extra}, "data": {**DATA, "tokenizer": "tokenizer.json"}, "train": train}
        logs[name] = finish(start_run, RunConfig.from_dict(config), name)

    torch.manual_seed(1)
    rows = torch.randint(4, VOCABULARY, (3, 17))
    decoder = sqat.Decoder(sqat.ModelConfig.from_dict({**MODEL, **RXNN})).eval()
    save_model(decoder, HERE / "rxnn", layout="rxnn")
    logits["rxnn"] = decoder(rows).logits

    stock = transformers.LlamaConfig(**STOCK, vocab_size=VOCABULARY, intermediate_size=7, max_position_embeddings=41)
    transformers.AutoModelForCausalLM.from_config(stock).save_pretrained("teacher")
    teacher = read_model(Path("teacher"))
    convert(teacher, plan_conversion(teacher.config, query_heads=2)).save_pretrained("student")
    for name in ("teacher", "student"):
        for path in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(path, name)
        shutil.copytree(name, HERE / name)
    os.system(f"{sys.executable} -m sqat convert teacher --query-heads 2 --layers 1-1 --to native --out {HERE}/mixed")
    logits["mixed"] = read_model(HERE / "mixed")(rows).logits
    model = {"path": "student", "teacher": "teacher", "tokens": 900, "context_length": 19}
    uptrain = {"model": model, "data": DATA, "train": {**TRAIN, **RUN, "max_steps": None, "evaluate_every": None}}
    logs["uptrain"] = finish(start_uptraining, UptrainConfig.from_dict(uptrain), "uptrain")

    (HERE / "logs.json").write_text(json.dumps(logs, indent=1))
    save_file({"rows": rows, **{name: tensor.detach() for name, tensor in logits.items()}}, HERE / "logits.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main()
