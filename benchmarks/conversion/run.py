"""Fewer query heads for a trained model, or a model with fewer heads from the start: what each costs in perplexity.

    python benchmarks/conversion/run.py path/to/TinyStories [--tokens 2000000] [--out runs/conversion]

Trains a small stock Qwen3 and Llama, converts each to half and a quarter of its query heads by every method, uptrains
each for 1, 5 and 20 % of the original tokens, and trains models with as few heads from scratch for the same shares and
for all tokens. Stopped or killed at any moment, the same command goes on from the newest checkpoints. Figures go to
raw/results.jsonl beside this file, and a table to raw/table.md.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM

from sqat.bench import environment
from sqat.checkpoint import write_folder
from sqat.convert import choose_heads, convert, plan_conversion
from sqat.convert.files import quiet, read_model, write_conversion
from sqat.convert.tokenizer import StockTokenizer, token_rows
from sqat.convert.uptrain import start_uptraining
from sqat.data.tokenizer import BOS, EOS, PAD
from sqat.durable import replace_file
from sqat.run_config import DataConfig
from sqat.train.checkpoints import best_checkpoint, list_checkpoints
from sqat.train.prepare import cached_tokenizer, open_sources
from sqat.train.state import read_state
from sqat.uptrain_config import UptrainConfig

HERE = Path(__file__).parent
ARCHITECTURES = {"qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}
METHODS = {
    "mean": ("mean", "norm"),
    "select-norm": ("select", "norm"),
    "select-activation": ("select", "activation"),
    "cluster-norm": ("cluster", "norm"),
    "cluster-activation": ("cluster", "activation"),
}
DIVISORS = (2, 4)  # of the query heads
SCRATCH = "from scratch"
# Grouped queries, of which only query heads are taken, and full attention, which must share key/value heads, too.
KV_HEADS = {"qwen3": 2, "llama": 8}
SIZES = {  # small enough for an hour or so on two cores
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


class Result(NamedTuple):
    """One run's figures; perplexity on the same validation text."""

    architecture: str
    query_heads: int
    method: str  # "trained" for the original
    share: float  # of the original tokens, percent
    tokens: int  # training targets seen
    first: float  # perplexity before this run's first step
    last: float  # and at its end


class Experiment:
    """All runs of one folder, in an order in which each finds what it needs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.sizes = {**SIZES, **{name: int(value) for name, _, value in (s.partition("=") for s in options.size)}}

    def results(self) -> Iterator[Result]:
        for architecture in self.options.architectures:
            yield from self.of(architecture)

    def of(self, architecture: str) -> Iterator[Result]:
        heads = self.sizes["num_attention_heads"]
        start = self.random(architecture, heads)
        original = self.train(f"{architecture}-trained", start, 100, self.options.lr)
        yield self.result(architecture, heads, "trained", 100, original)
        teacher = best_checkpoint(original)
        assert teacher is not None
        for fewer in (heads // divisor for divisor in DIVISORS):
            for share in (*self.options.shares, 100):
                name = f"{architecture}-{fewer}-scratch-{share:g}"
                run = self.train(name, self.random(architecture, fewer), share, self.options.lr)
                yield self.result(architecture, fewer, SCRATCH, share, run)
            for method in self.options.methods:
                student = self.converted(architecture, teacher, fewer, method)
                for share in self.options.shares:
                    name = f"{architecture}-{fewer}-{method}-{share:g}"
                    run = self.train(name, student, share, self.options.uptrain_lr, teacher=teacher)
                    yield self.result(architecture, fewer, method, share, run)

    def kv_heads(self, architecture: str, query_heads: int) -> int:
        return min(query_heads, KV_HEADS[architecture])

    def random(self, architecture: str, heads: int) -> Path:
        """An untrained stock checkpoint; one seed, so that models share what they can."""
        folder = self.out / "random" / f"{architecture}-{heads}"
        if not folder.exists():
            torch.manual_seed(self.options.seed)
            heads_of = {"num_attention_heads": heads, "num_key_value_heads": self.kv_heads(architecture, heads)}
            tokens = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
            config = ARCHITECTURES[architecture](**{**self.sizes, **heads_of, **tokens})
            source, _ = open_sources(self.data())
            with write_folder(folder) as temporary, quiet():
                AutoModelForCausalLM.from_config(config).save_pretrained(temporary)
                cached_tokenizer(source, self.sizes["vocab_size"]).save(temporary)
        return folder

    def converted(self, architecture: str, teacher: Path, heads: int, method: str) -> Path:
        folder = self.out / "converted" / f"{architecture}-{heads}-{method}"
        if not folder.exists():
            model = read_model(teacher)
            way, score = METHODS[method]
            plan = plan_conversion(
                model.config,
                query_heads=heads,
                kv_heads=self.kv_heads(architecture, heads),
                method=way,
                score=score,
            )
            rows = None
            if plan.needs_calibration:
                spec = f"{self.options.data}:{self.options.calibration}"
                length, size = self.sizes["max_position_embeddings"], self.sizes["vocab_size"]
                rows = token_rows([spec], StockTokenizer(teacher), length, size, tokens=1 << 20)
            heads = choose_heads(model, plan, rows)
            with quiet():
                result = convert(model, plan, heads=heads)
            with write_folder(folder) as temporary:
                write_conversion(result, plan, heads, teacher, str(teacher), temporary)
        return folder

    def train(self, name: str, model: Path, share: float, lr: float, *, teacher: Path | None = None) -> Path:
        """A finished run's folder; ends the process where it is asked to stop."""
        run = self.out / "runs" / name
        checkpoints = list_checkpoints(run)
        if not checkpoints or not read_state(checkpoints[-1]).finished:
            tokens = max(1, round(self.options.tokens * share / 100))
            config = UptrainConfig.from_dict(
                {
                    "model": {"path": str(model), "teacher": teacher and str(teacher), "tokens": tokens},
                    "data": self.data().to_dict(),
                    "train": {
                        "learning_rate": lr,
                        "batch_size": self.options.batch_size,
                        "evaluate_first": True,
                        "evaluate_every": None,
                        "keep_checkpoints": 1,
                        "tensorboard": False,
                        "seed": self.options.seed,
                        "device": self.options.device,
                    },
                }
            )
            trainer = start_uptraining(config, run, resume=True)
            print(f"{name}: step {trainer.state.step} of {trainer.total_steps}", flush=True)
            trainer.train()
            if trainer.interrupted:
                sys.exit("stopped; the same command goes on")
        return run

    def data(self) -> DataConfig:
        plain = DataConfig(source=self.options.data, validation_limit=self.options.validation)
        return plain if self.options.limit is None else replace(plain, limit=self.options.limit)

    def result(self, architecture: str, heads: int, method: str, share: float, run: Path) -> Result:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses = [line["loss"] for line in lines if line["kind"] == "validation"]
        newest = list_checkpoints(run)[-1]
        first, last = (math.exp(loss) for loss in (losses[0], losses[-1]))
        return Result(architecture, heads, method, share, read_state(newest).tokens, first, last)


def table(results: list[Result]) -> str:
    """Markdown: a row for every model and method, perplexity in every column."""
    shares = sorted({r.share for r in results if r.method != "trained"})
    head = ["model", "query heads", "method", "before", "right after", *(f"+ {share:g} %" for share in shares)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 3}{'--:|' * (len(head) - 3)}"]
    trained = {r.architecture: r.last for r in results if r.method == "trained"}
    rows: dict[tuple[str, int, str], dict[float, Result]] = {}
    for r in results:
        if r.method != "trained":
            rows.setdefault((r.architecture, r.query_heads, r.method), {})[r.share] = r
    for (architecture, heads, method), by_share in rows.items():
        cells = [architecture, str(heads), method]
        start = next(iter(by_share.values())).first
        cells += ["", ""] if method == SCRATCH else [f"{trained[architecture]:.2f}", f"{start:.2f}"]
        cells += [f"{by_share[share].last:.2f}" if share in by_share else "" for share in shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Any = parser.add_argument
    add("data", help="a source, as for `sqat train --data`")
    add("--tokens", type=int, default=2_000_000, help="of the original training")
    add("--shares", type=float, nargs="+", default=[1, 5, 20], help="of uptraining, percent of --tokens")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    add("--lr", type=float, default=2e-3, help="from scratch")
    add("--uptrain-lr", type=float, default=5e-4)
    add("--batch-size", type=int, default=8)
    add("--limit", type=int, help="at most so many training documents")
    add("--validation", type=int, default=300, help="validation documents")
    add("--calibration", type=int, default=200, help="documents")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--size", action="append", default=[], metavar="FIELD=N", help="another size of the models")
    add("--out", type=Path, default=Path("runs/conversion"), help="folder of the runs")
    add("--raw", type=Path, default=HERE / "raw", help="folder of the results")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.raw.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for result in Experiment(options).results():  # written anew after every run, so that each counts at once
        results.append(result)
        lines = "".join(json.dumps(r._asdict()) + "\n" for r in results)
        replace_file(options.raw / "results.jsonl", lines)
        replace_file(options.raw / "table.md", table(results))
    asked = {name: value for name, value in vars(options).items() if name != "raw"}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()}
    replace_file(options.raw / "environment.json", json.dumps({**environment(), "options": settings}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
