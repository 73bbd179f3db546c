"""Nothing that is read can bring code: no pickle, no eval, no loader of objects, no code of a checkpoint."""

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"

MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"),
    *("shelve", "tarfile", "zipfile", "imp", "runpy"),
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
FUNCTIONS = {
    *("torch.load", "np.load", "numpy.load", "np.fromregex", "shutil.unpack_archive", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader"),
}
KEYWORDS = {("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False), ("shell", True)}


def findings(tree):
    """(line, what) of everything in a module that could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.lineno, f"from {node.module}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in FUNCTIONS:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                yield node.lineno, node.func.id
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in KEYWORDS:
                    yield node.lineno, f"{keyword.arg}={keyword.value.value}"
            called = ast.unparse(node.func)
            if called.startswith("Auto") and called.endswith(".from_pretrained"):
                passed = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if passed.get("trust_remote_code") != "False":
                    yield node.lineno, f"{called} without trust_remote_code=False"


def test_no_source_file_runs_what_it_reads():
    paths = sorted(SOURCES.rglob("*.py"))
    assert len(paths) > 100
    found = [(path, *what) for path in paths for what in findings(ast.parse(path.read_text(encoding="utf-8")))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "AutoConfig.from_pretrained(folder)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)",
    ],
)
def test_the_search_finds(code):
    assert list(findings(ast.parse(code)))
