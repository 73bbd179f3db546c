"""`sqat bench` as a user meets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sqat.bench import run
from sqat.bench.results import Result
from sqat.cli import main

Sqat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sqat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Sqat:
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sqat", "bench", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return (code, *capsys.readouterr())

    return call


def test_one_benchmark_with_files(sqat: Sqat) -> None:
    code, out, err = sqat("long", "--quick", "--rounds", "1", "--out", "results")
    assert (code, err) == (0, "")
    assert "whole model, forward, 23 × 3" in out
    saved = json.loads(Path("results/long.json").read_text())
    assert saved["settings"]["rounds"] == 1
    assert saved["environment"]["versions"]["torch"]
    assert Path("results/summary.md").is_file()


def test_lengths_that_are_no_numbers(sqat: Sqat) -> None:
    code, out, err = sqat("attention", "--quick", "--lengths", "4k")
    assert (code, out) == (1, "")
    assert err.strip() == "error: --lengths is '4k', but must be numbers like 4096,32768"


def test_json_is_all_that_is_printed(sqat: Sqat) -> None:
    code, out, _ = sqat("peers", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["results"][0]["benchmark"] == "peers"
    assert {target["met"] for target in found["targets"]} == {None}


def test_all_goes_on_after_a_failure_and_says_so(sqat: Sqat, monkeypatch: pytest.MonkeyPatch) -> None:
    def stub(name: str) -> Callable[[object], Result]:
        def measure(context: object) -> Result:
            if name == "memory":
                raise OSError("the disk is full")
            return Result(name)

        return measure

    monkeypatch.setattr(run, "_function", stub)
    code, out, err = sqat("all", "--quick")
    assert code == 1
    assert "failed: memory: OSError: the disk is full" in err
    assert "long (" in out
    assert "targets" in out
    assert out.count("not measured") > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attention", "--rounds", "0"), "rounds is 0, but must be at least 1"),
        (("training", "--model", "sqat-mmm"), "unknown preset 'sqat-mmm'; did you mean 'sqat-mm'?"),
        (("all", "--device", "tpu"), "device is 'tpu', but must be one of cpu, cuda"),
        (("startup", "--quick", "--data", "./nothing.txt"), "nothing.txt"),
    ],
)
def test_wrong_input_is_one_clear_line(sqat: Sqat, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = sqat(*arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
