"""What an exported file depends on: the source that its definition reaches, and the versions of the libraries there.

A definition, its helpers and constants, and the exporter are found by their names, transitively, within the zoo.
Comments, docstrings, annotations and decorators do not count. So a new definition leaves the files of all others valid.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).parent
EXPORTER = (("export", "_write"), ("case", "_array"))  # what every file depends on
# Of Case only what makes the inputs: what verification asks of it does not reach a file.
PARTS = {("case", "Case"): "feed"}


@cache
def digest(module: str, name: str) -> str:
    """Return a digest for the function ``name`` of the zoo's module ``module``."""
    texts: dict[tuple[str, str], str] = {}
    packages = {"torch", "onnx", "onnxscript"}
    todo = [(module, name), *EXPORTER]
    while todo:
        place = todo.pop()
        if place in texts:
            continue
        defined, imported = _names(place[0])
        node = defined[place[1]]
        texts[place] = ast.unparse(node)
        for used in _used(node):
            if used in defined:
                todo.append((place[0], used))
            elif used in imported and imported[used][0].startswith("zoo."):
                todo.append((imported[used][0].removeprefix("zoo."), imported[used][1]))
            elif used in imported:
                packages.add(imported[used][0].split(".")[0])
        packages |= {source.split(".")[0] for source, _ in imports(node).values()}
    parts = [f"{place}: {texts[place]}" for place in sorted(texts)] + [_version(p) for p in sorted(packages)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # of the standard library
        return ""


@cache
def _names(module: str) -> tuple[dict[str, ast.AST], dict[str, tuple[str, str]]]:
    """Return what a module defines and what it imports, by name."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))
    defined: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            part = PARTS.get((module, node.name))
            chosen = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == part), node)
            defined[node.name] = _Bare().visit(chosen)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            defined.update(dict.fromkeys(names, _Bare().visit(node)))
    return defined, imports(ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], []))


def imports(tree: ast.AST) -> dict[str, tuple[str, str]]:
    """Return source and name there of each name that the tree imports."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update({(a.asname or a.name).split(".")[0]: (a.name, "") for a in node.names})
        elif isinstance(node, ast.ImportFrom):
            found.update({a.asname or a.name: (node.module or "", a.name) for a in node.names})
    return found


def _used(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


class _Bare(ast.NodeTransformer):
    """Takes out what does not reach a file."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list, node.returns = [], None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_docstring(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)
