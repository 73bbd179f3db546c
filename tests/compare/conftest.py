"""Plans and fabricated results for the tests of `sqat compare`."""

import json
import random

import pytest

from sqat.compare.folder import Folder
from sqat.compare.plan import ComparePlan

TINY_MODEL = {"vocab_size": 307, "hidden_size": 32, "head_dim": 4, "num_layers": 1}
TINY_MODEL |= {"intermediate_size": 13, "context_length": 31}
TINY_PLAN = {
    "name": "tiny",
    "family": "extra_small",
    "model": TINY_MODEL,
    "variants": ["gqa", "sqa"],
    "reference": "gqa",
    "data": {"source": "stories:53", "validation_limit": 5},
    "train": {"batch_size": 3, "max_steps": 12, "evaluate_every": 5, "checkpoint_every": 2, "log_every": 3}
    | {"tensorboard": False, "precision": "float32", "device": "cpu"},
    "seeds": [0, 1],
    "processes": 2,  # of one thread each on two cores, and so quick on a busy machine too
    "probes": 5,
    "stories": 1,
    "timing": {"rounds": 2, "steps": 2, "warmup": 1, "prompt_tokens": 7, "new_tokens": 3, "lengths": [5, 11]},
}


@pytest.fixture
def tiny_plan():
    """`tiny_plan(match="flops")` is a small plan with other fields."""
    return lambda **changes: ComparePlan.from_dict({**TINY_PLAN, **changes})


def fabricated_run(name, seed, model, loss):
    steps = 100
    curve = [
        {"step": s, "tokens": 100 * s, "flops": 1e6 * s, "loss": loss + 2 / s, "accuracy": 0.5}
        for s in range(20, 101, 20)
    ]
    return {
        "variant": name,
        "seed": seed,
        "model": model.to_dict(),
        "flops_per_token": 1e4,
        "steps": steps,
        "tokens": 100 * steps,
        "flops": 1e6 * steps,
        "evaluation": {
            "loss": loss,
            "perplexity": 2.7**loss,
            "accuracy": 0.6,
            "bits_per_byte": 0.5,
            "padded_loss": loss / 2,
            "padded_accuracy": 0.7,
            "router_load": [[0.1] * 2 + [0.08] * 10],
            "router_entropy": 2.1,
        },
        "curve": curve,
        "seconds": 10.0,
        "shared_machine": False,
        "peak_bytes": 10**9,
        "probes": {"accuracy": 0.4, "number": 100, "chance": 0.2},
        "stories": ["Once upon a time <script>alert('x')</script> | there was a fox."],
        "environment": {"revision": "abc", "cpu": "a processor"},
    }


@pytest.fixture
def fabricated(tmp_path):
    """`fabricated(variants, seeds)` writes a finished micro comparison and returns its folder; the losses differ by 0.1
    from one variant to the next, with noise that the seeds share.
    """

    def write(variants=("gqa", "sqa", "xsqa"), seeds=(0, 1, 2)):
        draw = random.Random(7)
        values = {"name": "made up", "family": "micro", "variants": list(variants), "reference": variants[0]}
        plan = ComparePlan.from_dict({**values, "seeds": list(seeds)})
        out = tmp_path / "made-up"
        folder = Folder(out)
        out.mkdir()
        folder.begin(plan)
        noise = {seed: draw.gauss(0, 0.05) for seed in seeds}
        runs = [
            fabricated_run(variant.name, seed, variant.model, 1.5 + 0.1 * i + noise[seed] + draw.gauss(0, 0.002))
            for i, variant in enumerate(plan.models())
            for seed in seeds
        ]
        (out / Folder.RESULTS).write_text("".join(json.dumps(run) + "\n" for run in runs))
        timing = {
            name: {
                "step_seconds": [(2 - 0.1 * i) * jitter for jitter in (1.0, 1.1, 1.3)],
                "evaluate_seconds": [0.5, 0.6, 0.7],
                "prompt_seconds": [0.1, 0.2, 0.3],
                "prompt_tokens": 1024,
                "decode_seconds_per_token": [0.001, 0.002, 0.003],
                "attention": {str(n): [[n * 1e-6] * 3, [n * 3e-6 / (i + 1)] * 3] for n in (256, 1024, 4096)},
            }
            for i, name in enumerate(variants)
        }
        head = {"rounds": 3, "batch_size": 64, "context": 256, "environment": {"cpu": "a processor", "threads": 2}}
        (out / Folder.TIMING).write_text(json.dumps({**head, "variants": timing}))
        return out

    return write
