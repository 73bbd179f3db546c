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
from sqat.compare import run, timing
from sqat.compare.folder import Folder
from sqat.compare.runner import run_comparison, settle
from sqat.errors import ConfigError, DataError, StorageError
from sqat.train.evaluate import evaluate

OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_bytes", "environment")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def untimed(tiny_plan):
    """A plan of two runs, and nothing but their training."""
    return tiny_plan(seeds=[0], timing={"rounds": 0}, probes=0, stories=0)


def results(out):
    """What does not depend on the machine."""
    lines = [json.loads(line) for line in (out / Folder.RESULTS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_THE_MACHINE} for line in lines]


def start(plan, out):
    (out.parent / "plan.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(plan.to_dict()))))
    command = [sys.executable, "-m", "sqat", "compare", "plan.yaml", "--out", out.name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def runs_alive(out):
    """Process ids of a comparison's runs, also of those that outlived it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_text()
        except OSError:
            continue
        if "sqat.compare.run" in line and out.name in line:
            found.append(int(entry.name))
    return found


def kill(process):
    process.kill()
    process.wait()


def wait_for_lines(log, number, process):
    """Until a run's log, which may shrink when the run goes on from a checkpoint, has so many."""
    while not log.is_file() or len(log.read_bytes().splitlines()) < number:
        assert process.poll() is None
        time.sleep(0.01)


def assert_report_only_makes_the_same(out, monkeypatch):
    """Byte for byte, in another process than the one before."""

    def report():
        return {path: path.read_bytes() for path in [*out.glob("report.*"), *out.glob("pictures/*")]}

    before = report()
    assert len(before) > 3
    for path in before:
        path.unlink()
    monkeypatch.setattr(sys, "argv", ["sqat", "compare", "--report-only", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert report() == before


def test_a_whole_comparison(tiny_plan, tmp_path, monkeypatch):
    plan, out = tiny_plan(), tmp_path / "whole"
    process = start(plan, out)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    for line in ("gqa, seed 0: done (", "(4 of 4)", "timing all variants in turn"):
        assert line in said
    whole = results(out)
    assert [(r["variant"], r["seed"]) for r in whole] == [("gqa", 0), ("gqa", 1), ("sqa", 0), ("sqa", 1)]
    for result in whole:
        assert result["steps"] == 12
        assert result["shared_machine"]
        assert [point["step"] for point in result["curve"]] == [5, 10, 12]
        assert result["evaluation"]["loss"] == result["curve"][-1]["loss"]
        assert result["probes"]["number"] == 5
        assert result["stories"][0].startswith("Once upon a time")
        assert result["flops"] == result["tokens"] * result["flops_per_token"]
    assert whole[0]["tokens"] == whole[2]["tokens"]
    timed = Folder(out).read_timing()["variants"]
    assert all(len(times["step_seconds"]) == 2 * plan.timing.steps for times in timed.values())
    assert_report_only_makes_the_same(out, monkeypatch)


def test_without_seeds_nothing_is_trained(tiny_plan, tmp_path, monkeypatch):
    plan, out = tiny_plan(seeds=[]), tmp_path / "timed"
    process = start(plan, out)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert not (out / "runs").exists()
    assert not (out / Folder.RESULTS).exists()
    assert "Nothing was trained" in (out / "report.md").read_text()
    assert_report_only_makes_the_same(out, monkeypatch)
    assert start(plan, out).wait(timeout=300) == 0  # has nothing left to do


@pytest.fixture
def stopped_timing(tiny_plan, tmp_path, monkeypatch):
    """A plan of three rounds, and the times of the first, whose timing pass was stopped at the end of the second."""
    plan = tiny_plan(seeds=[], timing={**tiny_plan().timing.to_dict(), "rounds": 3})
    replace_file, rounds = timing.replace_file, []

    def stop_in_the_second(path, text):
        rounds.append(path)
        if len(rounds) == 3:  # after the warm-up and the first
            raise KeyboardInterrupt
        replace_file(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(timing, "replace_file", stop_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            timing.time_variants(plan, plan.models(), tmp_path)
    assert Folder(tmp_path).read_timing() is None
    return plan, json.loads((tmp_path / timing.PART).read_text())["variants"]


def test_a_timing_pass_goes_on_after_the_rounds_that_are_done(stopped_timing, tmp_path):
    plan, first = stopped_timing
    whole = timing.time_variants(plan, plan.models(), tmp_path)
    for name, times in whole["variants"].items():
        assert len(times["step_seconds"]) == 3 * plan.timing.steps
        assert len(times["evaluate_seconds"]) == len(times["attention"]["11"][1]) == 3
        assert times["step_seconds"][: plan.timing.steps] == first[name]["step_seconds"]
    assert Folder(tmp_path).read_timing() == json.loads(json.dumps(whole))
    assert not (tmp_path / timing.PART).exists()


@pytest.mark.parametrize("part", [None, "{", "[1]", '{"asked": {}}', '{"asked": {}, "variants": {"mha": {}}}'])
def test_rounds_that_are_damaged_or_were_timed_otherwise_are_measured_again(part, stopped_timing, tiny_plan, tmp_path):
    plan, first = stopped_timing
    if part is None:
        plan = tiny_plan(seeds=[], timing={**plan.timing.to_dict(), "prompt_tokens": 5})
    else:
        (tmp_path / timing.PART).write_text(part)
    times = timing.time_variants(plan, plan.models(), tmp_path)["variants"]["gqa"]
    assert len(times["evaluate_seconds"]) == 3
    assert times["prompt_tokens"] == plan.timing.prompt_tokens
    assert times["prompt_seconds"][0] != first["gqa"]["prompt_seconds"][0]


def test_killed_at_any_moment_it_comes_to_the_same(tiny_plan, tmp_path):
    long = {**tiny_plan().train.to_dict(), "max_steps": 180, "checkpoint_every": 7, "evaluate_every": 50}
    plan = tiny_plan(seeds=[3], train=long, probes=3)
    whole, parts, draw = tmp_path / "whole", tmp_path / "parts", random.Random(5)
    run_comparison(plan, whole)
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
            kill(process)
            for child in runs_alive(parts) if number else []:  # at first they are left to end by themselves
                os.kill(child, signal.SIGKILL)
        assert not (parts / "runs" / "gqa-seed3" / Folder.RESULT).exists()  # so it was in the middle
    process = start(plan, parts)
    while not (parts / timing.PART).exists():  # the last kill is within the timing pass
        assert process.poll() is None
        time.sleep(0.01)
    kill(process)
    assert Folder(parts).read_timing() is None
    run_comparison(plan, parts)
    assert results(parts) == results(whole)
    assert Folder(parts).read_timing().keys() == Folder(whole).read_timing().keys()


@pytest.mark.parametrize("match", ["time", "flops", "parameters"])
def test_other_budgets(match, tiny_plan, tmp_path):
    rounds = {**tiny_plan().timing.to_dict(), "rounds": 1 if match == "time" else 0}
    less = {"seeds": [0], "timing": rounds, "probes": 0, "stories": 0}
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
        timed = Folder(tmp_path / "out").read_timing()["variants"]
        assert (xsqa["steps"] > 12) == (sum(timed["xsqa"]["step_seconds"]) < sum(timed["mha"]["step_seconds"]))
        assert [line for line in said if "timing" in line] == ["timing all variants in turn, for the budget"]


def test_runs_end_with_a_killed_comparison(tiny_plan, tmp_path):
    long = {**tiny_plan().train.to_dict(), "max_steps": 100_000, "evaluate_every": None, "checkpoint_every": None}
    plan, out = tiny_plan(seeds=[0], train=long, processes=1, timing={"rounds": 0}), tmp_path / "orphans"
    process = start(plan, out)
    log = out / "runs" / "gqa-seed0" / "metrics.jsonl"
    wait_for_lines(log, 1, process)
    kill(process)
    with Folder(out).locked():  # waits for them
        assert runs_alive(out) == []
    assert list(log.parent.glob("checkpoints/step-*"))  # saved when it was asked to stop


def test_asked_to_stop_in_its_last_evaluation_a_run_leaves_its_results_to_the_next_start(
    tiny_plan, tmp_path, monkeypatch
):
    plan, evaluations = tiny_plan(probes=3, stories=0, timing={"rounds": 0}), []
    folder = Folder(tmp_path / "out")
    with folder.locked():
        folder.begin(plan)
        settle(plan, folder, str)

    def signalled(*arguments, **options):
        evaluations.append(1)
        if len(evaluations) == 3:  # after steps 5, 10 and 12
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    monkeypatch.setattr("sqat.train.trainer.evaluate", signalled)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    result = folder.run("gqa", 0) / Folder.RESULT
    assert run.run(folder.out, "gqa", 0) == run.INTERRUPTED
    assert not result.exists()
    assert run.run(folder.out, "gqa", 0) == 0
    assert json.loads(result.read_text())["steps"] == 12
    assert len(evaluations) == 3  # the run was finished


def test_a_failed_run_is_named_and_the_others_are_done(untimed, tmp_path):
    out = tmp_path / "out"
    (Folder(out).run("gqa", 0) / "checkpoints" / "step-00000002").mkdir(parents=True)  # an empty checkpoint
    (failure,) = run_comparison(untimed, out)
    assert failure.startswith("gqa, seed 0: ")
    assert "step-00000002" in failure
    assert [result["variant"] for result in results(out)] == ["sqa"]


def test_storage_errors_say_what_to_do(untimed, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").touch()
    with pytest.raises(StorageError, match=r"runs/gqa-seed0 cannot be written: .*; choose another name"):
        run_comparison(untimed, tmp_path / "out")

    def full(path, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(StorageError, match=r"out cannot be written: No space left on device; free some space there"):
        run_comparison(untimed, tmp_path / "out")


def test_results_are_enough_to_go_on(untimed, tmp_path):
    first, kept, said = tmp_path / "first", tmp_path / "kept", []
    run_comparison(untimed, first)
    kept.mkdir()
    for name in (Folder.PLAN, Folder.SETUP, Folder.RESULTS):
        (kept / name).write_bytes((first / name).read_bytes())
    run_comparison(untimed, kept, said.append)
    assert said == []
    assert (kept / Folder.RESULTS).read_bytes() == (first / Folder.RESULTS).read_bytes()
    (kept / Folder.RESULTS).write_text('{"variant": "gqa"')
    with pytest.raises(DataError, match="is damaged"):
        run_comparison(untimed, kept)


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
    message = r"seeds is \[0, 7\], but the comparison in .* has \[0, 1\]: go on with its own"
    with pytest.raises(ConfigError, match=message):
        folder.begin(tiny_plan(seeds=[0, 7], timing=other))


def test_one_at_a_time(tiny_plan, tmp_path):
    with Folder(tmp_path).locked(), pytest.raises(ConfigError, match="a comparison is running in"):
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
