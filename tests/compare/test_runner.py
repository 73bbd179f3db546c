"""A comparison goes on wherever it was stopped, and comes to the same results."""

import errno
import json
import os
import re
import shutil
import signal
import sys
from contextlib import nullcontext
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


def silent(doing):
    return nullcontext(lambda *_: None)


def results(out):
    """What does not depend on the machine."""
    lines = [json.loads(line) for line in (out / Folder.RESULTS).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_THE_MACHINE} for line in lines]


def write_plan(plan):
    Path("plan.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(plan.to_dict()))))


def compare(monkeypatch, *arguments):
    """`sqat compare` in this process."""
    monkeypatch.setattr(sys, "argv", ["sqat", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


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
    """One of its runs fails at first, and is named; the others are done, and so is it by the same command."""
    plan, out = tiny_plan(seeds=[3]), tmp_path / "whole"
    write_plan(plan)
    broken = Folder(out).run("gqa", 3) / "checkpoints" / "step-00000002"
    broken.mkdir(parents=True)  # an empty checkpoint
    assert compare(monkeypatch, "plan.yaml", "--out", str(out)) == 1
    (failure,) = re.findall("failed:\ngqa, seed 3: (.*)", capfd.readouterr().out)
    assert "step-00000002" in failure
    assert [result["variant"] for result in results(out)] == ["sqa"]

    broken.rmdir()
    assert compare(monkeypatch, "plan.yaml", "--out", str(out)) == 0
    assert "gqa, seed 3: done (2 of 2)" in capfd.readouterr().out
    whole = results(out)
    assert [(result["variant"], result["seed"]) for result in whole] == [("gqa", 3), ("sqa", 3)]
    for result in whole:
        assert result["steps"] == 12
        assert result["shared_machine"]
        assert [point["step"] for point in result["curve"]] == [5, 10, 12]
        assert result["evaluation"]["loss"] == result["curve"][-1]["loss"]
        assert result["probes"]["number"] == 5
        assert result["stories"][0].startswith("Once upon a time")
        assert result["flops"] == result["tokens"] * result["flops_per_token"]
    assert whole[0]["tokens"] == whole[1]["tokens"]
    assert_report_only_makes_the_same(out, monkeypatch)

    shutil.rmtree(out / "runs")  # results are enough to go on
    said, lines = [], (out / Folder.RESULTS).read_bytes()
    run_comparison(plan, out, said.append)
    assert (said, (out / Folder.RESULTS).read_bytes()) == ([], lines)
    (out / Folder.RESULTS).write_text('{"variant": "gqa"')
    with pytest.raises(DataError, match="is damaged"):
        run_comparison(plan, out)


def test_progress_counts_documents_steps_and_rounds(tiny_plan, tmp_path):
    parts = {}
    run_comparison(
        tiny_plan(seeds=[0], processes=1, probes=0, stories=0),
        tmp_path / "out",
        progress=lambda doing: nullcontext(lambda *shown: parts.setdefault(doing, []).append(shown)),
    )
    assert [*parts] == ["reading data", "training", "timing"]
    assert any(done == total == 53 for _, done, total in parts["reading data"])
    assert {total for _, _, total in parts["training"]} == {24}
    assert parts["training"][-1][1] > 12
    assert any("sqa, seed 0: step " in doing for doing, *_ in parts["training"])
    turns = 2 * (1 + 2 * 2 + 3)
    assert [shown[1:] for shown in parts["timing"]] == [(done, turns) for done in range(turns)]


@pytest.mark.parametrize("name", [Folder.SETUP, Folder.TIMING])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_file_of_the_folder_is_named(tiny_plan, tmp_path, name, content):
    folder = Folder(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name} is damaged .* delete it, and the same command makes it again"):
        folder.read_setup() if name == Folder.SETUP else folder.read_timing()


def test_without_seeds_nothing_is_trained(tiny_plan, tmp_path, monkeypatch):
    out = tmp_path / "timed"
    write_plan(tiny_plan(seeds=[]))
    for _ in range(2):  # the second time nothing is left to do
        assert compare(monkeypatch, "plan.yaml", "--out", str(out)) == 0
    assert not (out / "runs").exists()
    assert not (out / Folder.RESULTS).exists()
    assert "Nothing was trained" in (out / "report.md").read_text()


def test_equal_time_is_shared_by_measured_steps(tiny_plan, tmp_path):
    once = {**tiny_plan().timing.to_dict(), "rounds": 1}
    plan, said = tiny_plan(match="time", variants=["mha", "xsqa"], reference="mha", timing=once), []
    folder = Folder(tmp_path)
    folder.begin(plan)
    variants = settle(plan, folder, said.append, silent).variants
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
        settle(plan, folder, str, silent)

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


def test_storage_errors_say_what_to_do(untimed, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").touch()
    with pytest.raises(StorageError, match=r"runs/s?[gx]?qa-seed0 cannot be written: .*; choose another name"):
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
    (tmp_path / Folder.TIMING).touch()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PLAN is missing"),
        (["--report-only"], "--out is missing"),
        (["none.yaml"], "no configuration file at none.yaml"),
        (["--report-only", "--out", "."], "has no finished run to report on"),
        (["compare/quick.yaml", "--seeds", "a,b"], "ComparePlan.seeds is 'a', but must be a whole number"),
    ],
)
def test_wrong_command_lines(monkeypatch, capsys, arguments, message):
    assert compare(monkeypatch, *arguments) == 1
    assert message in capsys.readouterr().err
