"""What README and docs show must work: Python examples are run, commands are parsed, links lead somewhere."""

import json
import re
import runpy
import shlex
import statistics
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from sqat.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# What an example may import -> what it needs besides.
EXTRAS = {"peft": (), "lm_eval": (), "xllamacpp": ("gguf",), "onnxruntime": ("onnx", "onnxscript")}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def needs_hub(code):
    return "ReactiveAI/" in code  # run against a local Hub in tests/rxnn


def missing_extras(code):
    """The packages that an example needs and that are optional, as far as they are not installed."""
    used = [name for name in EXTRAS if re.search(rf"^(import|from) {name}\b", code, re.MULTILINE)]
    return [package for name in used for package in (name, *EXTRAS[name]) if find_spec(package) is None]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    namespace, skipped = {}, []
    for code in blocks(page, "python"):
        if missing := missing_extras(code):
            skipped += missing
        elif not needs_hub(code):
            exec(compile(code, page.name, "exec"), namespace)
    if skipped:
        pytest.skip(f"all other examples ran, but {', '.join(skipped)} of the extras are not installed")


LINES = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
COMMANDS = [line.split("  #")[0].strip() for line in LINES if line.startswith("sqat ") and "MODEL" not in line]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    command = get_command(app)
    arguments = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("sqat", arguments)


def launches():
    scripts = [block.replace("\\\n", "") for page in PAGES for block in blocks(page, "bash")]
    lines = [line.partition("srun ")[2].partition(" ")[2] for script in scripts for line in script.splitlines()]
    return [line for line in [*LINES, *lines] if line.startswith("torchrun ")]


@pytest.mark.parametrize("line", launches())
def test_launches_parse(line):
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(shlex.split(line)[1:])
    assert (arguments.module, arguments.training_script) == (True, "sqat")
    name, *options = arguments.training_script_args
    get_command(app).commands[name].make_context("sqat", options)


@pytest.mark.parametrize("script", [block for page in PAGES for block in blocks(page, "bash")], ids=lambda _: "script")
def test_scripts_are_valid(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=True).stderr == ""


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in re.findall(r"^make (.*?)(?:  #|$)", "\n".join(LINES), re.MULTILINE):
        wanted = {word for word in shlex.split(line) if "=" not in word}  # not variables, such as BENCH="…"
        assert wanted <= targets, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_table_says_what_the_results_say():
    """Loss and recall with 95 % intervals over seeds, step relative to MHA's, prompt tokens/s, long forward pass."""
    from scipy import stats

    def interval(values):
        half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
        return statistics.mean(values), half

    benchmarks = ROOT / "benchmarks"
    lines = (benchmarks / "tinystories-micro/results.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines]
    recalls = [json.loads(line) for line in (benchmarks / "stories-recall/results.jsonl").read_text().splitlines()]
    timing = json.loads((benchmarks / "stories-recall/timing.json").read_text())["variants"]
    long = (benchmarks / "long-sequences/model/summary.md").read_text()
    long = long.partition("whole model, forward, 32,768 × 1")[2]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for variant, heads, model in (
        ("mha", "MHA 8 / 8", "mha-ref-mini"),
        ("gqa", "GQA 8 / 2", "gqa-ref-mini"),
        ("sqa", "SQA 4 / 2", "sqat-m"),
        ("xsqa", "xSQA 2 / 2", "xsqat-m"),
    ):
        loss, loss_half = interval([run["evaluation"]["loss"] for run in losses if run["variant"] == variant])
        probes = [100 * run["probes"]["accuracy"] for run in recalls if run["variant"] == variant]
        recall, recall_half = interval(probes)
        pairs = zip(timing[variant]["step_seconds"], timing["mha"]["step_seconds"], strict=True)
        step = statistics.median(own / mha for own, mha in pairs)
        prompt = timing[variant]["prompt_tokens"] / statistics.median(timing[variant]["prompt_seconds"])
        faster = re.search(rf"\| {model} \| [\d.]+ \| (?:([\d.]+)×)?", long)
        assert faster is not None
        quality = f"{loss:.3f} ± {loss_half:.3f} | {recall:.0f} ± {recall_half:.0f} %"
        assert f"| {heads} | {quality} | {step:.2f} | {prompt:,.0f} | {float(faster[1] or 1):.2f}× |" in readme


def test_the_api_page_is_current():
    page = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["page"]
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == page(), "run python docs/make_api.py"
