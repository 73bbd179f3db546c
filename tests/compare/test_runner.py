"""A comparison goes on wherever it was stopped, and comes to the same results."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sqat.cli import main
from sqat.compare import child, timing_pass
from sqat.compare.folder import Folder
from sqat.compare.runner import _settle, run_comparison
from sqat.errors import ConfigError, DataError, StorageError
from sqat.train.evaluate import evaluate

OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_bytes", "environment")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def results(out):
    """Without what depends on the machine."""
    lines = [json.loads(line) for line in (out / Folder.RESULTS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_THE_MACHINE} for line in lines]


def start(plan, out):
    (out.parent / "plan.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(plan.to_dict()))))
    command = [sys.executable, "-m", "sqat", "compare", "plan.yaml", "--out", out.name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children_of(out, parent=None):
    """Runs of a comparison: of the process `parent`, or all, also those that outlived theirs."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline") as file:
                    is_run = "sqat.compare.child" in (line := file.read()) and out.name in line
                with open(f"/proc/{entry}/status") as file:
                    if is_run and (parent is None or f"\nPPid:\t{parent}\n" in file.read()):
                        found.append(int(entry))
            except OSError:
                continue
    return found


def test_a_whole_comparison(tiny_plan, tmp_path, monkeypatch):
    plan = tiny_plan()
    process = start(plan, tmp_path / "whole")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "gqa, seed 0: done (" in said
    assert "(4 of 4)" in said
    assert "timing all variants in turn" in said
    whole = results(tmp_path / "whole")
    assert [(run["variant"], run["seed"]) for run in whole] == [("gqa", 0), ("gqa", 1), ("sqa", 0), ("sqa", 1)]
    for run in whole:
        assert run["steps"] == 12
        assert run["shared_machine"]
        assert [point["step"] for point in run["curve"]] == [5, 10, 12]
        assert run["evaluation"]["loss"] == run["curve"][-1]["loss"]
        assert run["probes"]["number"] == 5
        assert run["stories"][0].startswith("Once upon a time")
        assert run["flops"] == run["tokens"] * run["flops_per_token"]
    assert whole[0]["tokens"] == whole[2]["tokens"]
    timing = json.loads((tmp_path / "whole" / Folder.TIMING).read_text())
    assert all(len(entry["step_seconds"]) == 2 * plan.timing.steps for entry in timing["variants"].values())
    assert_report_only_makes_the_same(tmp_path / "whole", monkeypatch)


def report_files(out):
    return {path: path.read_bytes() for path in [*out.glob("report.*"), *out.glob("pictures/*")]}


def assert_report_only_makes_the_same(out, monkeypatch):
    """Byte for byte, in another process than the one before."""
    before = report_files(out)
    assert len(before) > 3
    for path in before:
        path.unlink()
    monkeypatch.setattr(sys, "argv", ["sqat", "compare", "--report-only", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert report_files(out) == before


def test_without_seeds_nothing_is_trained(tiny_plan, tmp_path, monkeypatch):
    process = start(tiny_plan(seeds=[]), tmp_path / "timed")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert not (tmp_path / "timed" / "runs").exists()
    assert not (tmp_path / "timed" / Folder.RESULTS).exists()
    assert "Nothing was trained" in (tmp_path / "timed" / "report.md").read_text()
    assert_report_only_makes_the_same(tmp_path / "timed", monkeypatch)
    assert start(tiny_plan(seeds=[]), tmp_path / "timed").wait(timeout=300) == 0  # has nothing left to do


def test_a_timing_pass_goes_on_after_the_rounds_that_are_done(tiny_plan, tmp_path, monkeypatch):
    plan = tiny_plan(seeds=[], timing={**tiny_plan().timing.to_dict(), "rounds": 3})
    measured, calls = timing_pass._Timed.measure, []

    def stopped(self, *, counts):  # in the second of the rounds that count, after its first variant
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(counts)
        measured(self, counts=counts)

    monkeypatch.setattr(timing_pass._Timed, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        timing_pass.time_variants(plan, plan.models(), tmp_path)
    assert timing_pass.read_timing(tmp_path) is None
    part = (tmp_path / timing_pass.PART).read_text()
    first = json.loads(part)["variants"]
    monkeypatch.setattr(timing_pass._Timed, "measure", measured)
    whole = timing_pass.time_variants(plan, plan.models(), tmp_path)
    for name, entry in whole["variants"].items():
        assert len(entry["step_seconds"]) == 3 * plan.timing.steps
        assert len(entry["evaluate_seconds"]) == len(entry["attention"]["11"][1]) == 3
        assert entry["step_seconds"][: plan.timing.steps] == first[name]["step_seconds"]
    assert timing_pass.read_timing(tmp_path) == json.loads(json.dumps(whole))
    assert not (tmp_path / timing_pass.PART).exists()

    (tmp_path / timing_pass.PART).write_text(part)
    other = tiny_plan(seeds=[], timing={**plan.timing.to_dict(), "prompt_tokens": 5})
    timed = timing_pass.time_variants(other, plan.models(), tmp_path)["variants"]
    assert timed["gqa"]["prompt_tokens"] == 5
    assert timed["gqa"]["prompt_seconds"][0] != first["gqa"]["prompt_seconds"][0]


@pytest.mark.parametrize("damaged", ["{", "[1]", '{"asked": {}}', '{"asked": {}, "variants": {"mha": {}}}'])
def test_damaged_rounds_are_measured_again(damaged, tmp_path):
    (tmp_path / timing_pass.PART).write_text(damaged)
    variants = {"gqa": {"step_seconds": [], "evaluate_seconds": [], "attention": {"11": [[], []]}}}
    assert timing_pass._go_on(tmp_path / timing_pass.PART, {}, variants) == 0
    assert variants["gqa"]["step_seconds"] == []


def test_killed_at_any_moment_it_comes_to_the_same(tiny_plan, tmp_path):
    long = {**tiny_plan().train.to_dict(), "max_steps": 180, "checkpoint_every": 7, "evaluate_every": 50}
    plan = tiny_plan(seeds=[3], train=long, probes=3)
    run_comparison(plan, tmp_path / "whole")
    parts, draw = tmp_path / "parts", random.Random(5)
    for number in range(3):
        process = start(plan, parts)
        wait_for_lines(parts / "runs" / "gqa-seed3" / "metrics.jsonl", 15 * number + draw.randint(1, 15), process)
        time.sleep(draw.uniform(0, 0.05))
        if number == 1:  # asked to stop: the run saves a checkpoint and says how to go on
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 128 + signal.SIGTERM
            assert "the same command goes on" in said
        else:
            process.kill()
            process.wait()
            for child in children_of(parts) if number else []:  # at first they are left to end by themselves
                os.kill(child, signal.SIGKILL)
        assert not (parts / "runs" / "gqa-seed3" / Folder.RESULT).exists()  # so it was in the middle
    process = start(plan, parts)
    while not (parts / timing_pass.PART).exists():  # the last kill is within the timing pass
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert timing_pass.read_timing(parts) is None
    run_comparison(plan, parts)
    for ours, theirs in zip(results(parts), results(tmp_path / "whole"), strict=True):
        assert ours == theirs
    assert timing_pass.read_timing(parts).keys() == timing_pass.read_timing(tmp_path / "whole").keys()


def wait_for_lines(log, number, process):
    """Until a run's log, which may shrink when the run goes on from a checkpoint, has so many."""
    while not log.is_file() or len(log.read_bytes().splitlines()) < number:
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("match", ["time", "flops", "parameters"])
def test_other_budgets(match, tiny_plan, tmp_path):
    timing = {**tiny_plan().timing.to_dict(), "rounds": 1 if match == "time" else 0}
    less = {"seeds": [0], "timing": timing, "probes": 0, "stories": 0}
    plan = tiny_plan(match=match, variants=["mha", "xsqa"], reference="mha", **less)
    said = []
    assert run_comparison(plan, tmp_path / "out", said.append) == []
    mha, xsqa = results(tmp_path / "out")
    assert mha["steps"] == 12
    if match == "flops":
        assert abs(xsqa["flops"] / mha["flops"] - 1) < 0.1
        assert xsqa["steps"] > 12
    elif match == "parameters":
        assert abs(xsqa["parameters"]["total"] - mha["parameters"]["total"]) < mha["model"]["hidden_size"] * 4
        assert xsqa["model"]["intermediate_size"] > mha["model"]["intermediate_size"]
    else:
        timed = timing_pass.read_timing(tmp_path / "out")["variants"]
        assert (xsqa["steps"] > 12) == (sum(timed["xsqa"]["step_seconds"]) < sum(timed["mha"]["step_seconds"]))
        assert [line for line in said if "timing" in line] == ["timing all variants in turn, for the budget"]


def test_runs_end_with_a_killed_comparison(tiny_plan, tmp_path):
    long = {**tiny_plan().train.to_dict(), "max_steps": 100_000, "evaluate_every": None, "checkpoint_every": None}
    plan, out = tiny_plan(seeds=[0], train=long, processes=1, timing={"rounds": 0}), tmp_path / "orphans"
    process = start(plan, out)
    log = out / "runs" / "gqa-seed0" / "metrics.jsonl"
    while not (log.is_file() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    with Folder(out).locked():  # waits for them
        assert children_of(out) == []
    assert list(log.parent.glob("checkpoints/step-*"))  # saved when it was asked to stop


def test_asked_to_stop_in_its_last_evaluation_a_run_leaves_its_figures_to_the_next_start(
    tiny_plan, tmp_path, monkeypatch
):
    plan, evaluations = tiny_plan(probes=3, stories=0, timing={"rounds": 0}), []
    folder = Folder(tmp_path / "out")
    with folder.locked():
        folder.begin(plan)
        _settle(plan, folder, str)

    def signalled(*arguments, **options):
        evaluations.append(1)
        if len(evaluations) == 3:  # after steps 5, 10 and 12
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    monkeypatch.setattr("sqat.train.trainer.evaluate", signalled)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    result = folder.run("gqa", 0) / Folder.RESULT
    assert child.run(folder.out, "gqa", 0) == child.INTERRUPTED
    assert not result.exists()
    assert child.run(folder.out, "gqa", 0) == 0
    assert json.loads(result.read_text())["steps"] == 12
    assert len(evaluations) == 3  # the run was finished


def test_a_failed_run_is_named_and_the_others_are_done(tiny_plan, tmp_path):
    plan = tiny_plan(seeds=[0], timing={"rounds": 0}, probes=0, stories=0)
    out = tmp_path / "out"
    broken = Folder(out).run("gqa", 0)
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "checkpoints" / "step-00000002").mkdir()  # a checkpoint without anything in it
    failures = run_comparison(plan, out)
    assert len(failures) == 1
    assert failures[0].startswith("gqa, seed 0: ")
    assert "step-00000002" in failures[0]
    assert [run["variant"] for run in results(out)] == ["sqa"]


def test_what_the_system_refuses_is_said_with_what_to_do(tiny_plan, tmp_path, monkeypatch):
    plan = tiny_plan(seeds=[0], timing={"rounds": 0}, probes=0, stories=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").touch()
    with pytest.raises(StorageError, match=r"runs/gqa-seed0 cannot be written: .*; choose another name"):
        run_comparison(plan, tmp_path / "out")

    def full(path, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(StorageError, match=r"out cannot be written: No space left on device; free some space there"):
        run_comparison(plan, tmp_path / "out")


def test_results_are_enough_to_go_on(tiny_plan, tmp_path):
    plan = tiny_plan(seeds=[0], timing={"rounds": 0}, probes=0, stories=0)
    run_comparison(plan, tmp_path / "first")
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in (Folder.PLAN, Folder.SETUP, Folder.RESULTS):
        (kept / name).write_bytes((tmp_path / "first" / name).read_bytes())
    said = []
    run_comparison(plan, kept, said.append)
    assert said == []
    assert results(kept) == results(tmp_path / "first")
    (kept / Folder.RESULTS).write_text('{"variant": "gqa"')
    with pytest.raises(DataError, match="is damaged"):
        run_comparison(plan, kept)


def test_another_plan_in_the_same_folder_is_refused(tiny_plan, tmp_path):
    folder = Folder(tmp_path)
    folder.begin(tiny_plan())
    folder.begin(tiny_plan(processes=1))  # may change
    other = {**tiny_plan().timing.to_dict(), "rounds": 3}
    folder.begin(tiny_plan(timing=other))  # while nothing is timed
    (tmp_path / Folder.TIMING).write_text("{}")
    with pytest.raises(ConfigError, match=r"timing is .* but the comparison in"):
        folder.begin(tiny_plan())
    folder.begin(tiny_plan(timing=other))
    with pytest.raises(
        ConfigError, match=r"seeds is \[0, 7\], but the comparison in .* has \[0, 1\]: go on with its own"
    ):
        folder.begin(tiny_plan(seeds=[0, 7], timing=other))


def test_one_at_a_time(tiny_plan, tmp_path):
    with (
        Folder(tmp_path).locked(),
        pytest.raises(ConfigError, match="a comparison is running in"),
    ):
        run_comparison(tiny_plan(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PLAN is missing"),
        (["--report-only"], "--out is missing"),
        (["none.yaml"], "no configuration file at none.yaml"),
        (["--report-only", "--out", "."], "has no finished run to report on"),
        (["none.yaml", "--seeds", "a,b"], "--seeds is 'a,b', but must be numbers like 0,1,2"),
    ],
)
def test_wrong_command_lines(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["sqat", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
