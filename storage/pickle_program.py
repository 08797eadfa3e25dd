"""What a pickle would build, worked out without running it: a stack machine for the few opcodes that plain data needs.

`pickletools` of the standard library reads the opcodes; nothing is imported and nothing is called. A call of a function
that the caller does not name stays a `Call`, a name stays a `Global`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_MARK = object()
_MAX_OPCODES = 1_000_000  # 31,000 tensors of torch.save, 32 each; 0.5 to 3 seconds on a slow core, by what they are
_PLAIN = (str, int, float, bytes, type(None))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
     "BYTEARRAY8", "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "STRING",
     "BINSTRING", "SHORT_BINSTRING"}
)  # fmt: skip


class PickleError(ValueError):
    """An opcode that plain data does not need, or a program that does not add up.

    at: byte of the pickle at which it does not, once :func:`evaluate` has it.
    """

    at = 0


@dataclass(frozen=True)
class Global:
    """A name that a pickle wants to import."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """A call that was not made: what is called and with what, and the items put into the result afterwards."""

    function: Any
    arguments: Any
    items: dict[Any, Any] = field(default_factory=dict)


def evaluate(data: bytes, persistent: Callable[[Any], Any], reductions: dict[Global, Callable[[Any], Any]]) -> Any:
    """The value a pickle stands for, made of dicts, lists, tuples, text, numbers, `Global` and `Call`.

    Parameters
    ----------
    data: the pickle, protocol 2 or later.
    persistent: gives the value of a persistent id.
    reductions: for each known function what stands in for its result, given the tuple of arguments.

    Raises `PickleError`.
    """
    machine = _Machine(persistent, reductions)
    place: int | None = 0
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            place = position
            if number > _MAX_OPCODES:
                raise PickleError("it is too long")
            machine.step(opcode.name, argument)
        return machine.result()
    except Exception as error:  # whatever a broken program trips over, none of it has run
        known = isinstance(error, PickleError)
        fault = PickleError(str(error) if known else f"it is broken: {' '.join(str(error).split())[:100]}")
        fault.at = place or 0
        raise fault from error


class _Machine:
    def __init__(self, persistent: Callable[[Any], Any], reductions: dict[Global, Callable[[Any], Any]]) -> None:
        self._persistent, self._reductions = persistent, reductions
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._done: list[Any] = []
        self._copied = 0

    def result(self) -> Any:
        if len(self._done) != 1 or self._done[0] is _MARK:
            raise PickleError("it has no end")
        return self._done[0]

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif (made := _EMPTY.get(name)) is not None:
            stack.append(made())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise PickleError("its stack runs empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._since_mark()
            stack.append(_pairs(items) if name == "DICT" else list(items) if name == "LIST" else tuple(items))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            _extend(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            _update(stack[-1], _pairs(items))
        elif name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
            stack.append(Global(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):  # as text, nested lists would never end
                raise PickleError("a name is no text")
            stack.append(Global(module, attribute))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            self._call(name)
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Call) and isinstance(state, dict):
                self._copied += len(state)
                if self._copied > _MAX_OPCODES:  # one large state for many objects
                    raise PickleError("its objects have too many items")
                stack[-1].items.update(state)
        elif name == "BINPERSID":
            stack.append(self._persistent(stack.pop()))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            self._done.append(stack.pop())
        else:
            raise PickleError(f"opcode {name} is not needed for data")

    def _call(self, name: str) -> None:
        named = self._stack.pop() if name == "NEWOBJ_EX" else {}
        arguments, function = self._stack.pop(), self._stack.pop()
        known = self._reductions.get(function) if isinstance(function, Global) else None
        self._stack.append(known(arguments) if known and not named else Call(function, arguments))

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while at >= 0 and self._stack[at] is not _MARK:
            at -= 1
        if at < 0:
            raise PickleError("a mark is missing")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items


_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list,
}  # fmt: skip


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise PickleError("a key has no value")
    # A key that is a list or an object cannot name a tensor; it is kept by its place.
    keys = [key if isinstance(key, _PLAIN) else f"<{at}>" for at, key in enumerate(items[::2])]
    return dict(zip(keys, items[1::2], strict=True))


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, Call):
        target.items.update({len(target.items) + at: item for at, item in enumerate(items)})
    else:
        raise PickleError("it appends to what is no list")


def _update(target: Any, items: dict[Any, Any]) -> None:
    if isinstance(target, dict):
        target.update(items)
    elif isinstance(target, Call):
        target.items.update(items)
    else:
        raise PickleError("it sets items of what is no dict")
