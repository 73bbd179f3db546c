"""What an import brings along, and the public names."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import sqat

ECOSYSTEM = {
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "pyarrow",
    "yaml",
    "typer",
    "rich",
}


def imported_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after a statement."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output))


def test_the_package_alone_brings_no_torch():
    assert not imported_by("import sqat") & {"torch", "numpy", *ECOSYSTEM}


def test_configurations_bring_no_torch():
    assert not imported_by("from sqat import ModelConfig, preset; preset('sqat-mm'); import sqat.cost") & {
        "torch",
        "numpy",
        *ECOSYSTEM,
    }


def test_the_model_brings_torch_alone():
    assert not imported_by("import sqat.model") & ECOSYSTEM


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
