"""What imports what: read from the import statements of every file, and seen in a fresh interpreter."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sqat
from sqat.checkpoint import save_model
from sqat.data.tokenizer import train_tokenizer

SOURCE = Path(sqat.__file__).parent
ECOSYSTEM = {
    *("transformers", "accelerate", "datasets", "tokenizers", "huggingface_hub"),
    *("safetensors", "pyarrow", "numba", "yaml", "typer", "rich"),
}


def module_name(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in SOURCE.rglob("*.py")}


def imports(module):
    """Every module that a file imports: at its top, inside functions, and for type checkers alone."""
    found = set()
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -node.level + 1 or None] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
            found |= {name if name in FILES else origin for name in names}
    return found


IMPORTS = {module: imports(module) for module in FILES}
FILE_GRAPH = {module: found & FILES.keys() - {module} for module, found in IMPORTS.items()}


def top(module):
    """`sqat.model` for `sqat.model.mask`; modules right below `sqat` stand for themselves."""
    return ".".join(module.split(".")[:2])


PACKAGE_GRAPH: dict[str, set[str]] = {}
for _module, _found in FILE_GRAPH.items():
    PACKAGE_GRAPH.setdefault(top(_module), set()).update({top(other) for other in _found} - {top(_module)})


def circle(graph):
    """One circle of a graph, each importing the next, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.mark.parametrize("graph", [FILE_GRAPH, PACKAGE_GRAPH], ids=["files", "packages"])
def test_no_circle_of(graph):
    assert circle(graph) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}  # one would be found
    assert not any(name.split(".")[0] == "rxnn" for found in IMPORTS.values() for name in found)  # nor the shim


def reachable(module):
    """A module of this package and everything of the package that it imports, directly or not."""
    seen, waiting = set(), [module]
    while waiting:
        if (name := waiting.pop()) not in seen:
            seen.add(name)
            waiting += FILE_GRAPH[name]
    return seen


@pytest.mark.parametrize("module", sorted(module for module in FILES if module.startswith("sqat.model.")))
def test_the_model_is_pure_torch(module):
    """Torch alone and, of this package, configurations and errors, which are plain Python."""
    own = {other for other in FILE_GRAPH[module] if top(other) != "sqat.model"}
    assert own <= {"sqat.config", "sqat.cost", "sqat.errors"}
    assert {name.split(".")[0] for name in IMPORTS[module]} <= {"torch", "sqat", *sys.stdlib_module_names}
    for name in set().union(*map(reachable, own)):
        assert {other.split(".")[0] for other in IMPORTS[name]} <= {"sqat", *sys.stdlib_module_names}, name


def loaded_by(statement):
    """All modules in a fresh interpreter after some statements."""
    code = f"import json, sys; {statement}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sqat", {"torch", "numpy", *ECOSYSTEM}),
        ("from sqat import ModelConfig, preset; preset('sqat-mm'); import sqat.cost", {"torch", "numpy", *ECOSYSTEM}),
        ("import sqat.model; from sqat import Attention; Attention(8, 2, 1, 4)", ECOSYSTEM),
        ("import sqat.data", {"torch", "pyarrow", "tokenizers", "numpy"}),
        ("from sqat.data.stories import story; story(0)", {"numpy", "torch", *ECOSYSTEM}),
        ("from sqat.cli import app; app(['--help'], standalone_mode=False)", {"torch", "transformers"}),
    ],
)
def test_light_imports_stay_light(statement, absent):
    assert not loaded_by(statement) & absent


def test_generating_loads_neither_trainer_nor_matplotlib_nor_a_compiler(tiny_model, tmp_path):
    tokenizer = train_tokenizer(["Once upon a time"], 263)
    save_model(tiny_model(vocab_size=263), tmp_path)
    tokenizer.save(tmp_path)
    command = ["generate", str(tmp_path), "Once", "--max-tokens", "3"]
    loaded = loaded_by(f"from sqat.cli import app; app({command!r}, standalone_mode=False)")
    assert "sqat.generate.decode" in loaded
    assert not {name for name in loaded if name.startswith(("sqat.train.trainer", "matplotlib", "torch._dynamo"))}


@pytest.mark.parametrize("name", sorted(set(sqat.__all__) - {"__version__"}))
def test_public_names_are_objects_not_modules(name):
    """Also after all of the package is imported: a subpackage must not hide a function of the same name."""
    for module in pkgutil.iter_modules(sqat.__path__):
        if module.name != "__main__":
            importlib.import_module(f"sqat.{module.name}")
    assert callable(getattr(sqat, name))


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'sqat' has no attribute 'nothing'"):
        _ = sqat.nothing
    assert set(dir(sqat)) == set(sqat.__all__)
