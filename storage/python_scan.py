"""Read Python files with `ast`: definitions with docstrings, and the imports by which they get their public names.

Nothing is imported and nothing runs. The module needs the standard library alone, so that it can be started as a
script in a process of its own: paths and module names come as JSON lines, the facts of each file leave as one.
"""

from __future__ import annotations

import ast
import gc
import json
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TypedDict

_MAX_FILE = 4 << 20  # larger ones are tables that a generator wrote
_HOLE = re.compile(r"\{\w*\}")


class Facts(TypedDict):
    """What one module says of itself.

    defs: qualified name inside the module, kind (function, class, method), docstring.
    names: local name -> (module, name in it), with name "" for a module.
    stars: modules imported with ``*``.
    exported: ``__all__`` where it is a plain list, else None.
    told: dotted name, kind, docstring attached from elsewhere (``add_newdoc``, ``add_docstr``).
    error: why the file could not be read, else "".
    """

    module: str
    package: bool
    defs: list[tuple[str, str, str]]
    names: dict[str, tuple[str, str]]
    stars: list[str]
    exported: list[str] | None
    told: list[tuple[str, str, str]]
    error: str


def scan_file(path: str, module: str) -> Facts:
    """The facts of one file; a file that does not parse has an ``error`` and no definitions."""
    package = path.endswith("__init__.py")
    facts = Facts(module=module, package=package, defs=[], names={}, stars=[], exported=None, told=[], error="")
    try:
        with open(path, "rb") as file:
            source = file.read(_MAX_FILE + 1)
        if len(source) > _MAX_FILE:
            raise ValueError(f"larger than {_MAX_FILE >> 20} MiB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
        for node in _statements(tree.body):
            _module_statement(node, facts)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        facts["error"] = f"{type(error).__name__}: {error}"[:200]
    return facts


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module or class, those under if, try and with included: they may well define its names."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.For | ast.While):
            yield from _statements(node.body)
            yield from _statements(node.orelse)
        elif isinstance(node, ast.With):
            yield from _statements(node.body)
        elif isinstance(node, ast.Try):
            yield from _statements(node.body)
            for handler in node.handlers:
                yield from _statements(handler.body)
            yield from _statements(node.orelse)
            yield from _statements(node.finalbody)


def _module_statement(node: ast.stmt, facts: Facts) -> None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        _definition(node, "", facts)
    elif isinstance(node, ast.ImportFrom):
        target = _absolute(node, facts)
        for alias in node.names:
            if alias.name == "*":
                facts["stars"].append(target)
            else:
                facts["names"][alias.asname or alias.name] = (target, alias.name)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            local = alias.asname or alias.name.partition(".")[0]
            facts["names"][local] = (alias.name if alias.asname else local, "")
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        _assignment(node, facts)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        _attached(node.value, "", facts)


def _definition(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, owner: str, facts: Facts) -> None:
    name = f"{owner}{node.name}"
    if owner and node.name.startswith("_"):
        return
    kind = "class" if isinstance(node, ast.ClassDef) else "method" if owner else "function"
    # A definition without a docstring is listed too: it hides an imported name, and gives a class its methods.
    facts["defs"].append((name, kind, ast.get_docstring(node) or ""))
    if isinstance(node, ast.ClassDef):
        for inner in _statements(node.body):
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                _definition(inner, f"{name}.", facts)


def _absolute(node: ast.ImportFrom, facts: Facts) -> str:
    if not node.level:
        return node.module or ""
    parts = facts["module"].split(".")
    keep = len(parts) - node.level + facts["package"]
    return ".".join([*parts[: max(keep, 0)], *([node.module] if node.module else [])])


def _assignment(node: ast.Assign | ast.AnnAssign | ast.AugAssign, facts: Facts) -> None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    if not names or node.value is None:
        return
    if "__all__" in names:
        listed = _strings(node.value)
        previous = facts["exported"] if isinstance(node, ast.AugAssign) else []
        facts["exported"] = None if listed is None or previous is None else previous + listed
    elif isinstance(node.value, ast.Call):
        _attached(node.value, names[0], facts)
    elif (dotted := _dotted(node.value)) and not isinstance(node, ast.AugAssign):
        head, _, tail = dotted.rpartition(".")
        module, inner = facts["names"].get(head, ("", "")) if head else (facts["module"], "")
        if module and tail not in names:
            facts["names"].update(dict.fromkeys(names, (f"{module}.{inner}".rstrip("."), tail)))


def _attached(call: ast.Call, assigned: str, facts: Facts) -> None:
    """Docstrings that compiled code gets from Python: NumPy's ``add_newdoc`` and Torch's ``add_docstr``."""
    function = _dotted(call.func).rpartition(".")[2].lstrip("_")
    if function == "add_docstr" and len(call.args) >= 2:
        text, name = _text(call.args[1]), _dotted(call.args[0])
        if text and assigned:
            facts["defs"].append((assigned, "function", text))
        elif text and name:
            facts["told"].append((name, "function", text))
    elif function == "add_newdoc" and len(call.args) >= 3:
        place, name = _text(call.args[0]), _text(call.args[1])
        docs = call.args[2]
        if place and name and (text := _text(docs)):
            facts["told"].append((f"{place}.{name}", "", text))
        elif place and name and isinstance(docs, ast.Tuple | ast.List):
            for pair in [docs] if len(docs.elts) == 2 and _text(docs.elts[0]) else docs.elts:
                if isinstance(pair, ast.Tuple) and len(pair.elts) == 2 and (text := _text(pair.elts[1])):
                    facts["told"].append((f"{place}.{name}.{_text(pair.elts[0])}", "method", text))


def _text(node: ast.expr) -> str:
    """A string constant, also one that is formatted or joined to others; the holes of a format are left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        text = _text(node.func.value)
        return _HOLE.sub("", text) if node.func.attr == "format" else text
    return ""


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := _dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def _strings(node: ast.expr) -> list[str] | None:
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return None
    values: list[Any] = [item.value for item in node.elts if isinstance(item, ast.Constant)]
    return values if len(values) == len(node.elts) and all(isinstance(value, str) for value in values) else None


def main() -> None:
    """Scan the files that standard input names."""
    gc.disable()  # trees have no cycles worth looking for, and looking takes half the time
    for line in sys.stdin:
        path, module = json.loads(line)
        print(json.dumps(scan_file(path, module)), flush=True)


if __name__ == "__main__":
    main()
