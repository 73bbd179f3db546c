"""A comparison goes on wherever it was stopped, and comes to the same results."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sqat.cli import main
from sqat.compare import run
from sqat.compare.folder import Folder
from sqat.compare.plan import share_budget
from sqat.compare.runner import run_comparison, settle
from sqat.errors import ConfigError, DataError, StorageError
from sqat.train.evaluate import evaluate

OF_THE_MACHINE = ("seconds", "peak_bytes", "environment")


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


def write_plan(plan):
    Path("plan.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(plan.to_dict()))))


def start(plan, out):
    write_plan(plan)
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


def wait_for_lines(log, number, process):
    """Until a run's log, which may shrink when the run goes on from a checkpoint, has so many."""
    while not log.is_file() or len(log.read_bytes().splitlines()) < number:
        assert process.poll() is None
        time.sleep(0.01)


def compare(monkeypatch, *arguments):
    """`sqat compare` in this process."""
    monkeypatch.setattr(sys, "argv", ["sqat", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def assert_report_only_makes_the_same(out, monkeypatch):
    """Byte for byte."""

    def report():
        return {path: path.read_bytes() for path in [*out.glob("report.*"), *out.glob("pictures/*")]}

    before = report()
    assert len(before) >= 3
    for path in before:
        path.unlink()
    assert compare(monkeypatch, "--report-only", "--out", str(out)) == 0
    assert report() == before


def test_a_whole_comparison(tiny_plan, tmp_path, monkeypatch, capfd):
    plan, out = tiny_plan(), tmp_path / "whole"
    write_plan(plan)
    assert compare(monkeypatch, "plan.yaml", "--out", str(out)) == 0
    said = "".join(capfd.readouterr())
    for line in ("gqa, seed 0: done (", "(4 of 4, about 0 min left)", "timing all variants in turn"):
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
    assert_results_are_enough_to_go_on(plan, out, tmp_path / "kept")


def assert_results_are_enough_to_go_on(plan, out, kept):
    kept.mkdir()
    for name in (Folder.PLAN, Folder.SETUP, Folder.RESULTS, Folder.TIMING):
        shutil.copy(out / name, kept / name)
    said = []
    run_comparison(plan, kept, said.append)
    assert said == []
    assert (kept / Folder.RESULTS).read_bytes() == (out / Folder.RESULTS).read_bytes()
    (kept / Folder.RESULTS).write_text('{"variant": "gqa"')
    with pytest.raises(DataError, match="is damaged"):
        run_comparison(plan, kept)


def test_without_seeds_nothing_is_trained(tiny_plan, tmp_path, monkeypatch):
    out = tmp_path / "timed"
    write_plan(tiny_plan(seeds=[]))
    for _ in range(2):  # the second time nothing is left to do
        assert compare(monkeypatch, "plan.yaml", "--out", str(out)) == 0
    assert not (out / "runs").exists()
    assert not (out / Folder.RESULTS).exists()
    assert "Nothing was trained" in (out / "report.md").read_text()
    assert_report_only_makes_the_same(out, monkeypatch)


def test_killed_or_asked_to_stop_it_comes_to_the_same(tiny_plan, tmp_path):
    long = {**tiny_plan().train.to_dict(), "max_steps": 100, "checkpoint_every": 7, "evaluate_every": 50}
    plan = tiny_plan(seeds=[3], train=long, variants=["gqa"], probes=0, stories=0, timing={"rounds": 0})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_comparison(plan, whole)
    log = parts / "runs" / "gqa-seed3" / "metrics.jsonl"

    process = start(plan, parts)
    wait_for_lines(log, 3, process)
    process.kill()
    process.wait()
    process = start(plan, parts)  # waits for the run, which is asked to stop when its parent is gone
    wait_for_lines(log, 9, process)
    assert len(runs_alive(parts)) == 1
    process.kill()
    process.wait()
    while runs_alive(parts):
        time.sleep(0.01)
    assert list(log.parent.glob("checkpoints/step-*"))
    assert not (log.parent / Folder.RESULT).exists()  # so it was in the middle

    process = start(plan, parts)
    wait_for_lines(log, 15, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on" in said
    assert not (log.parent / Folder.RESULT).exists()

    run_comparison(plan, parts)
    assert results(parts) == results(whole)


def test_equal_time_is_shared_by_measured_steps(tiny_plan, tmp_path):
    plan, said = tiny_plan(match="time", variants=["mha", "xsqa"], reference="mha"), []
    folder = Folder(tmp_path)
    folder.begin(plan)
    variants = settle(plan, folder, said.append).variants
    seconds = {name: times["step_seconds"] for name, times in folder.read_timing()["variants"].items()}
    assert [*variants.values()] == share_budget(plan, 1, 1.0, seconds)
    assert variants["mha"].steps == 12
    assert said == ["timing all variants in turn, for the budget"]


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


@pytest.mark.parametrize("changes", [{"data": {"source": "nothing.txt"}}, {"train": {"device": "cuda:7"}}], ids=str)
def test_a_comparison_that_cannot_begin_leaves_no_folder(tiny_plan, tmp_path, changes):
    with pytest.raises((ConfigError, DataError), match=r"nothing\.txt: no such file|no GPU is available"):
        run_comparison(tiny_plan(**changes), tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists()


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
    assert compare(monkeypatch, *arguments) == 1
    assert message in capsys.readouterr().err
