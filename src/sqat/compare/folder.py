"""A comparison's folder: written as the comparison goes on, and read back for the report.

plan.yaml      the plan; a second start must bring the same one
setup.json     threads, and each variant's model and steps, settled by the first start
runs/          a folder for each run (`sqa-seed0`), with checkpoints, logs and its result.json
results.jsonl  the results of all finished runs, a line each; enough to go on from without runs/
timing.json    the timing pass
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sqat.compare.plan import ComparePlan, Variant
from sqat.config import ModelConfig
from sqat.durable import replace_file, writing
from sqat.errors import ConfigError, DataError
from sqat.folders import removed_if_unused
from sqat.lock import locked
from sqat.run_config import read_yaml
from sqat.train.checkpoints import list_checkpoints
from sqat.train.state import current_names
from sqat.untrusted import read_json

FREE = {"processes", "stories", "probes"}  # fields of a plan that may change while its runs are not done


class Setup(NamedTuple):
    """What the first start settled, so that every later start goes on with the same comparison."""

    threads: int  # of each run: results depend on them, to the bit
    variants: dict[str, Variant]  # with their steps


class Folder:
    """The files of a comparison in the folder `out`."""

    PLAN, SETUP, RESULTS, TIMING = "plan.yaml", "setup.json", "results.jsonl", "timing.json"
    RESULT = "result.json"  # of a run

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, name: str, seed: int) -> Path:
        """The folder of one run."""
        return self.out / "runs" / f"{name}-seed{seed}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. Raises a ConfigError if a comparison is running there, and a StorageError if the
        lock cannot be made.
        """
        if (self.out / "config.yaml").is_file() or list_checkpoints(self.out):
            raise ConfigError(f"{self.out} holds a training run: choose another folder for the comparison (--out)")
        with removed_if_unused(self.out, {".lock", self.PLAN}), ExitStack() as held:
            with writing(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(self.out / ".lock", f"a comparison is running in {self.out}"))
            yield

    def begin(self, plan: ComparePlan) -> None:
        """Write the plan. Raises a ConfigError that names the first field that differs if another plan is here."""
        if (self.out / self.PLAN).is_file():
            before, now = self.read_plan().to_dict(), plan.to_dict()
            # The timing pass comes last: until it is done, its plan may change.
            free = FREE if (self.out / self.TIMING).is_file() else FREE | {"timing"}
            for name, value in now.items():
                if name not in free and plain(before[name]) != plain(value):
                    raise ConfigError(
                        f"{name} is {plain(value)!r}, but the comparison in {self.out} has {plain(before[name])!r}: "
                        "go on with its own plan, or choose another folder (--out)"
                    )
        replace_file(self.out / self.PLAN, yaml.safe_dump(plain(plan.to_dict()), sort_keys=False))

    def read_plan(self) -> ComparePlan:
        """Read plan.yaml. Raises ConfigError if it is missing or damaged."""
        return ComparePlan.from_dict(read_yaml(self.out / self.PLAN))

    def read_setup(self) -> Setup:
        """Read setup.json."""
        with _naming(self.out / self.SETUP) as values:
            shares = values["shares"].items()
            variants = {name: Variant(name, ModelConfig.from_dict(s["model"]), s["steps"]) for name, s in shares}
            return Setup(values["threads"], variants)

    def write_setup(self, setup: Setup) -> None:
        """Write setup.json."""
        shares = {name: {"model": v.model.to_dict(), "steps": v.steps} for name, v in setup.variants.items()}
        replace_file(self.out / self.SETUP, json.dumps({"threads": setup.threads, "shares": shares}, indent=1))

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The results of all finished runs by variant and seed, from results.jsonl and from the runs' own folders.
        Raises a DataError if a line is damaged.
        """
        paths = [self.out / self.RESULTS, *sorted((self.out / "runs").glob(f"*/{self.RESULT}"))]
        runs = [run for path in paths for run in read_results(path)]
        return {(str(run["variant"]), int(run["seed"])): run for run in runs}

    def write_results(self, plan: ComparePlan) -> int:
        """Gather the results of all finished runs in results.jsonl, in the plan's order; returns how many there are."""
        found = self.finished()
        wanted = [(variant.name, seed) for variant in plan.models() for seed in plan.seeds]
        lines = [json.dumps(found[run]) + "\n" for run in wanted if run in found]
        replace_file(self.out / self.RESULTS, "".join(lines))
        return len(lines)

    def read_timing(self) -> dict[str, Any] | None:
        """Read timing.json; `None` if time has not been measured yet."""
        if not (path := self.out / self.TIMING).is_file():
            return None
        with _naming(path) as timing:
            return {**timing, "variants": {**timing["variants"]}}


@contextmanager
def _naming(path: Path) -> Iterator[dict[str, Any]]:
    """The values in a JSON file; errors in reading and using them are a DataError that names it."""
    try:
        yield read_json(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        right = (
            "but must be as the comparison wrote it: bring it back, or delete it, and the same command makes it again"
        )
        raise DataError(f"{path} is damaged ({error!r}), {right}") from error


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read results, one JSON object a line; none if there is no such file. Raises a DataError that names a damaged
    line.
    """
    runs = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            run = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is damaged: {error}") from error
        if "evaluation" in run:
            run["evaluation"] = current_names(run["evaluation"])
        runs.append(run)
    return runs


def plain(value: Any) -> Any:
    """A value as YAML and JSON give it back: tuples become lists."""
    return json.loads(json.dumps(value))


@dataclass(frozen=True)
class Comparison:
    """What a report is made from: the plan, the results of each finished run, and the timing pass if there was one."""

    plan: ComparePlan
    runs: list[dict[str, Any]]
    timing: dict[str, Any] | None

    @property
    def variants(self) -> list[str]:
        """Names of the variants with a finished run, in the plan's order; all of them if nothing was trained."""
        done = {run["variant"] for run in self.runs}
        return [variant.name for variant in self.plan.models() if variant.name in done or not done]

    @property
    def models(self) -> dict[str, ModelConfig]:
        """Their models: as they were trained, or as they would be."""
        found = {variant.name: variant.model for variant in self.plan.models()}
        found |= {run["variant"]: ModelConfig.from_dict(run["model"]) for run in self.runs}
        return {name: found[name] for name in self.variants}

    def runs_of(self, variant: str) -> list[dict[str, Any]]:
        """The finished runs of a variant, one for each seed."""
        return [run for run in self.runs if run["variant"] == variant]

    def by_seed(self, *path: str) -> dict[str, dict[int, float]]:
        """A metric by variant and seed, as `by_seed("evaluation", "loss")`; runs without it are left out."""
        found: dict[str, dict[int, float]] = {name: {} for name in self.variants}
        for run in self.runs:
            value: Any = run
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found[run["variant"]][run["seed"]] = value
        return {name: values for name, values in found.items() if values}

    def missing(self) -> list[str]:
        """The plan's runs that are not done."""
        done = {(run["variant"], run["seed"]) for run in self.runs}
        planned = [(variant.name, seed) for variant in self.plan.models() for seed in self.plan.seeds]
        return [f"{name}, seed {seed}" for name, seed in planned if (name, seed) not in done]

    def time_ratios(self, what: str) -> dict[str, dict[int, float]]:
        """A measured time relative to the reference's, by variant and round."""
        if self.timing is None or self.plan.reference not in self.timing["variants"]:
            return {}
        base = self.timing["variants"][self.plan.reference][what]
        return {
            name: {i: a / b for i, (a, b) in enumerate(zip(times[what], base, strict=False))}
            for name, times in self.timing["variants"].items()
        }


def read_comparison(out: Path) -> Comparison:
    """Read everything in a comparison's folder.

    Raises:
        ConfigError, DataError: a file is missing or damaged; the message names file and line.
    """
    folder = Folder(out)
    runs, timing = read_results(out / folder.RESULTS), folder.read_timing()
    if not runs and timing is None:
        raise DataError(
            f"{out} has no finished run to report on and no timing pass ({folder.RESULTS}, {folder.TIMING}): "
            "it is not a comparison's folder, or nothing is done yet"
        )
    return Comparison(folder.read_plan(), runs, timing)
