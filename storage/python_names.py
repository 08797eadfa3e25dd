"""Public names of what packages define: an import makes ``numpy.linalg.svd`` of ``numpy.linalg._linalg.svd``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from storage.python_scan import Facts

_MAX_HOPS = 30


class Documented(NamedTuple):
    """One function, class or method with a docstring, under its shortest public name."""

    id: str
    text: str
    module: str
    kind: str


def is_public(dotted: str) -> bool:
    """True when no part of the name begins with an underscore."""
    return not any(part.startswith("_") for part in dotted.split("."))


def documented(facts: Mapping[str, Facts]) -> list[Documented]:
    """What the modules document, sorted by name.

    A name counts as public when no part of it begins with an underscore and a module has it by definition, by
    ``__all__`` or, in a package's ``__init__`` and in modules that define nothing, by import. Of several the one with
    the fewest parts is taken, then the shortest. Names stay inside their top-level package. Ids are unique.
    """
    facts = _with_told(facts)
    names = _Names(facts)
    best: dict[tuple[str, str], str] = {}
    for module in facts:
        if not is_public(module):
            continue
        for name in names.exports(module):
            found = names.definition(module, name)
            if found is None or name.startswith("_") or found[0].split(".")[0] != module.split(".")[0]:
                continue
            alias = f"{module}.{name}"
            if found not in best or _rank(alias) < _rank(best[found]):
                best[found] = alias
    rows: dict[str, Documented] = {}
    for module in sorted(facts):
        for qualified, kind, raw in facts[module]["defs"]:
            text = _clean(raw)
            top, dot, rest = qualified.partition(".")
            if text and (module, top) in best and is_public(rest):
                name = f"{best[module, top]}{dot}{rest}"
                rows.setdefault(name, Documented(name, text, module, kind))
    return [rows[name] for name in sorted(rows)]


def referenced(facts: Iterable[Facts]) -> set[str]:
    """Modules whose definitions these modules give a name to."""
    wanted: set[str] = set()
    for fact in facts:
        if fact["exported"] is not None or _passes_on(fact):
            wanted.update(fact["stars"], (module for module, _ in fact["names"].values()))
    return wanted


def _passes_on(fact: Facts) -> bool:
    """True for a package's ``__init__`` and for a module that defines nothing: what else would its imports be for."""
    return fact["package"] or not fact["defs"]


def _rank(alias: str) -> tuple[int, int, str]:
    return alias.count("."), len(alias), alias


def _clean(text: str) -> str:
    # A lone surrogate in a docstring is no text that a file could hold.
    return inspect.cleandoc(text).strip().encode("utf-8", "replace").decode()


def _with_told(facts: Mapping[str, Facts]) -> dict[str, Facts]:
    """The facts with docstrings that one module attaches to names of another put where the names are."""
    result: dict[str, Facts] = {}
    for module, fact in facts.items():
        result[module] = fact.copy()
        result[module]["defs"] = _first_with_docstring(fact["defs"])
    for fact in facts.values():
        classes = {name.rpartition(".")[0] for name, kind, _ in fact["told"] if kind == "method"}
        for dotted, kind, text in fact["told"]:
            depth = 2 if kind == "method" else 1
            parts = dotted.split(".")
            module, name = ".".join(parts[:-depth]), ".".join(parts[-depth:])
            if not module or module.split(".")[0] != fact["module"].split(".")[0]:
                continue
            home = result.setdefault(module, _nothing(module))
            told = (name, kind or ("class" if dotted in classes else "function"), text)
            home["defs"] = _first_with_docstring([*home["defs"], told])
    return result


def _nothing(module: str) -> Facts:
    return Facts(module=module, package=False, defs=[], names={}, stars=[], exported=None, told=[], error="")


def _first_with_docstring(defs: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """One definition a name: overloads and branches define it several times, and one of them has the docstring."""
    kept: dict[str, tuple[str, str, str]] = {}
    for entry in defs:
        if entry[0] not in kept or (entry[2] and not kept[entry[0]][2]):
            kept[entry[0]] = (entry[0], entry[1], entry[2])
    return list(kept.values())


class _Names:
    """Looks names up through imports; every answer is kept."""

    def __init__(self, facts: Mapping[str, Facts]) -> None:
        self._facts = facts
        self._own = {module: {name for name, _, _ in fact["defs"] if "." not in name} for module, fact in facts.items()}
        self._found: dict[tuple[str, str], tuple[str, str] | None] = {}
        self._exports: dict[str, frozenset[str]] = {}

    def definition(self, module: str, name: str, hops: int = 0) -> tuple[str, str] | None:
        """(module, name) of the definition that ``name`` in ``module`` stands for; None when it is not a definition."""
        key = (module, name)
        if key not in self._found:
            self._found[key] = None  # a circle of imports defines nothing
            self._found[key] = self._look(module, name, hops)
        return self._found[key]

    def _look(self, module: str, name: str, hops: int) -> tuple[str, str] | None:
        fact = self._facts.get(module)
        if fact is None or hops > _MAX_HOPS:
            return None
        if name in self._own[module]:
            return module, name
        if name in fact["names"]:
            target, inner = fact["names"][name]
            return self.definition(target, inner, hops + 1) if inner else None
        stars = (star for star in fact["stars"] if name in self.exports(star))
        return next((found for star in stars if (found := self.definition(star, name, hops + 1))), None)

    def exports(self, module: str) -> frozenset[str]:
        """Names that a module offers to others."""
        if module not in self._exports:
            self._exports[module] = frozenset()
            self._exports[module] = self._offered(module)
        return self._exports[module]

    def _offered(self, module: str) -> frozenset[str]:
        fact = self._facts.get(module)
        if fact is None:
            return frozenset()
        names = set(self._own[module])
        if fact["exported"] is not None:
            return frozenset(names | set(fact["exported"]))
        if _passes_on(fact):
            names |= set(fact["names"])
        if _passes_on(fact) or not is_public(module):
            names = names.union(*(self.exports(star) for star in fact["stars"]))
        return frozenset(names)


Scan = Callable[[Mapping[str, str]], dict[str, Facts]]


def gather(files: Mapping[str, str], scan: Scan) -> dict[str, Facts]:
    """Facts of all public modules and of those private ones that give public names, in as few rounds as it takes.

    Parameters
    ----------
    files: module name -> path of all modules there are.
    scan: reads the named modules.
    """
    # Modules of attached docstrings are imported for their effect, by no name that could be followed.
    wanted = {module for module in files if is_public(module) or "docs" in module.rpartition(".")[2]}
    facts: dict[str, Facts] = {}
    while wanted:
        found = scan({module: files[module] for module in sorted(wanted)})
        facts.update(found)
        wanted = {module for module in referenced(found.values()) if module in files and module not in facts}
    return facts
