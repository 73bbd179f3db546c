"""Writes docs/api.md from the source and docstrings of the public names: `python docs/make_api.py`."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

PAGE = Path(__file__).with_name("api.md")
MODULES = ("sqat", "sqat.generate", "sqat.train", "sqat.convert", "sqat.hf", "sqat.errors")
INTRODUCTION = """# The Python interface

Everything here is public; other modules may change without notice. Letters stand for sizes: B batch, T tokens, D
hidden size, V vocabulary, H heads, E experts. Errors are subclasses of `sqat.errors.SqatError`; their messages name the
field, the value found and what would be right. `python docs/make_api.py` writes this page from the docstrings.
"""


def page() -> str:
    """The text of docs/api.md. Names appear once, in the first module that offers them."""
    parts, seen = [INTRODUCTION], set()
    for name in MODULES:
        module = importlib.import_module(name)
        parts.append(f"## {name}\n\n{prose(module.__doc__ or '')}")
        for member in sorted(public_names(module), key=str.lower):
            value = getattr(module, member)
            called = value.generate if inspect.ismodule(value) else value  # `sqat.generate` can be called
            if id(called) not in seen:
                seen.add(id(called))
                parts.append(entry(f"{name}.{member}", called))
    return "\n".join(parts)


def public_names(module: object) -> list[str]:
    """The classes and functions that a module offers: those in `__all__`, or else those that it defines."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if inspect.isclass(value) and not name.startswith("_")]
    return [name for name in names if name != "__version__"]


def entry(title: str, value: object) -> str:
    """A heading, the signature or fields, the docstring, and for a class its public methods."""
    source = textwrap.dedent(inspect.getsource(value))  # type: ignore[arg-type]
    node = ast.parse(source).body[0]
    lines = source.splitlines()
    parts = [f"### {title}\n"]
    if isinstance(node, ast.ClassDef):
        parts += [code(fields(node, lines) or constructor(node, lines)), prose(docstring(node, title))]
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and ast.get_docstring(method):
                parts.append(f"{code(header(method, lines))}\n{prose(docstring(method, title))}")
    else:
        parts += [code(header(node, lines)), prose(docstring(node, title))]
    return "\n".join(part for part in parts if part)


def docstring(node: ast.AST, title: str) -> str:
    text = ast.get_docstring(node)  # type: ignore[arg-type]
    if not text:
        raise SystemExit(f"{title} has no docstring")
    return text


def header(node: ast.AST, lines: list[str]) -> str:
    """`def name(…) -> …`, as the source has it; a property keeps its decorator."""
    marks = [
        f"@{ast.unparse(mark)}" for mark in node.decorator_list if ast.unparse(mark) in ("property", "classmethod")
    ]  # type: ignore[attr-defined]
    text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))  # type: ignore[attr-defined]
    text = re.sub(r"(\(\s*)(?:self|cls)(?:,\s*|(?=\)))", r"\1", text, count=1)
    return "\n".join([*marks, text.strip().removesuffix(":")])


def constructor(node: ast.ClassDef, lines: list[str]) -> str:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return header(method, lines).replace("def __init__", f"class {node.name}", 1).removesuffix(" -> None")
    return f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})"


def fields(node: ast.ClassDef, lines: list[str]) -> str:
    """The fields of a dataclass or named tuple, with their comments."""
    found = [
        field
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
    ]
    if not found or any(isinstance(method, ast.FunctionDef) and method.name == "__init__" for method in node.body):
        return ""
    body = "\n".join(lines[found[0].lineno - 1 : found[-1].end_lineno])
    return f"class {node.name}:\n{textwrap.indent(textwrap.dedent(body), '    ')}"


def code(text: str) -> str:
    return f"```py\n{text}\n```\n"


def prose(text: str) -> str:
    """A docstring as Markdown: its sections (Args, Returns, Raises) become lists."""
    text = re.sub(r":(?:class|func|meth|mod|data):`~?([^`]+)`", r"`\1`", text)
    blocks = []
    for block in inspect.cleandoc(text).split("\n\n"):
        title, _, rest = block.partition("\n")
        if title in ("Args:", "Returns:", "Raises:", "Yields:"):
            items = re.split(r"\n(?=\S)", textwrap.dedent(rest)) if title in ("Args:", "Raises:") else [rest]
            listed = [re.sub(r"^([\w*., ]+):", r"`\1`:", " ".join(item.split())) for item in items]
            block = f"{title}\n\n" + "\n".join(f"- {item}" for item in listed)
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
