"""A comparison's folder: what lies where, and that a second start means the same comparison."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sqat.compare.budget import Share
from sqat.compare.plan import ComparePlan, Variant
from sqat.config import ModelConfig
from sqat.durable import make_folder, replace_file, writing
from sqat.errors import ConfigError, DataError
from sqat.lock import locked, take
from sqat.run_config import read_yaml
from sqat.untrusted import parse_json, read_json

logger = logging.getLogger(__name__)

FREE = {"processes", "stories", "probes"}  # fields of a plan that may change while its runs are not done


class Setup(NamedTuple):
    """What was settled when a comparison began, so that going on is the same comparison."""

    threads: int  # of each run: results depend on them, to the bit
    shares: dict[str, Share]

    def to_dict(self) -> dict[str, Any]:
        shares = {name: {"model": s.variant.model.to_dict(), "steps": s.steps} for name, s in self.shares.items()}
        return {"threads": self.threads, "shares": shares}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Setup:
        shares = {
            name: Share(Variant(name, ModelConfig.from_dict(share["model"])), int(share["steps"]))
            for name, share in values["shares"].items()
        }
        return cls(int(values["threads"]), shares)


class Folder:
    """Paths within a comparison's folder, and its small files."""

    PLAN, SETUP, RESULTS, TIMING = "plan.yaml", "setup.json", "results.jsonl", "timing.json"
    RESULT, SHARED = "result.json", ".shared"  # of a run; the second: it had others beside it, at least for a while

    def __init__(self, out: Path) -> None:
        self.out = out

    def run(self, name: str, seed: int) -> Path:
        return self.out / "runs" / f"{name}-seed{seed}"

    @contextmanager
    def locked(self, say: Callable[[str], None] = logger.info) -> Iterator[int]:
        """For one process at a time. Yields what its runs must inherit (a file's number): they hold a lock of their own
        as long as they live, so that runs of a process that was killed are waited for, and no run is made twice at
        once.

        Raises:
            ConfigError: another process has it.
            StorageError: it cannot be made.
        """
        with ExitStack() as held:
            with writing(self.out):
                make_folder(self.out)
                held.enter_context(locked(self.out / ".lock", f"a comparison is running in {self.out}"))
                runs = self._lock_of_runs(say)
            try:
                yield runs
            finally:
                os.close(runs)

    def _lock_of_runs(self, say: Callable[[str], None]) -> int:
        path = self.out / ".lock-runs"
        path.touch()
        try:
            return take(path)
        except BlockingIOError:
            say("waiting for runs that an earlier start left behind; they save their checkpoints and end")
            return take(path, wait=True)
        except OSError:  # a file system without locks
            return os.open(path, os.O_RDONLY)

    def begin(self, plan: ComparePlan) -> None:
        """Write the plan, or see that it is the one that is here.

        Raises:
            ConfigError: another one is; the message names the first field that differs.
        """
        if (self.out / self.PLAN).is_file():
            before, now = self.read_plan().to_dict(), plan.to_dict()
            # The timing pass comes last: until it is done, it may become another.
            free = FREE if (self.out / self.TIMING).is_file() else FREE | {"timing"}
            for name, value in now.items():
                if name not in free and plain(before[name]) != plain(value):
                    raise ConfigError(
                        f"{name} is {plain(value)!r}, but the comparison in {self.out} has {plain(before[name])!r}: "
                        "go on with its own plan, or choose another folder (--out)"
                    )
        replace_file(self.out / self.PLAN, yaml.safe_dump(plain(plan.to_dict()), sort_keys=False))

    def read_plan(self) -> ComparePlan:
        return ComparePlan.from_dict(read_yaml(self.out / self.PLAN))

    def read_setup(self) -> Setup:
        """Raises DataError where it is damaged."""
        path = self.out / self.SETUP
        try:
            return Setup.from_dict(read_json(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from error

    def write_setup(self, setup: Setup) -> None:
        replace_file(self.out / self.SETUP, json.dumps(setup.to_dict(), indent=1))

    def finished(self) -> dict[tuple[str, int], str]:
        """The results of runs that are done, as lines, by variant and seed: those of the runs' own folders, and those
        gathered before (a comparison's results can be kept, and gone on from, without its checkpoints).

        Raises:
            DataError: a damaged line.
        """
        found = {}
        paths = [self.out / self.RESULTS, *sorted((self.out / "runs").glob(f"*/{self.RESULT}"))]
        for text in (line for path in paths for line in read_lines(path)):
            try:
                run = parse_json(text, finite=False)
                found[str(run["variant"]), int(run["seed"])] = text.strip() + "\n"
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self.out}: the result {text[:60]!r} is damaged: {error}") from error
        return found

    def write_results(self, plan: ComparePlan) -> int:
        """Gather the results of all runs that are done, in the plan's order; returns how many there are."""
        found = self.finished()
        wanted = [(variant.name, seed) for variant in plan.models() for seed in plan.seeds]
        lines = [found[run] for run in wanted if run in found]
        replace_file(self.out / self.RESULTS, "".join(lines))
        return len(lines)


def read_lines(path: Path) -> list[str]:
    """Of a text file; none where there is no file. Raises DataError where it is no text."""
    try:
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def plain(value: Any) -> Any:
    """As YAML gives it back: tuples are lists."""
    return json.loads(json.dumps(value))
