"""Which code a method class is, in a file or in none: the hash that makes an edited method a new run."""

from __future__ import annotations

import builtins
import dataclasses
import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from audiocl_bench.files import sha256_file, sha256_json

_OURS = ("audiocl_bench", "audiocl_methods")  # told apart by version and commit, which every result carries
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_STABLE = (bool, int, float, complex, str, bytes, type(None), type(...), range, slice, Path)
_NOT_CODE = ("name", "source_hash")  # set when a class is registered or identified
_GENERATED_IN = "<string>"  # the file name that `dataclass` gives its functions ...
_GENERATED = {  # ... which follow from its fields
    *("__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__"),
    *("__setattr__", "__delattr__", "__replace__"),
}


def source_hash(cls: type) -> str:
    """Return the hash of a class's source.

    Returns:
        for a class in a file: the SHA-256 of the file, as for `my.py:MyMethod`.
        for one in no file (a notebook's cell, a prompt): the SHA-256 of its source together with that of everything it
        uses that is in no file either (base classes, functions, settings, constants) and of the user's own files among
        what it uses, and `:inline`. Where Python keeps no source it is the compiled code that counts, which differs
        between versions of Python, and the hash ends in `:compiled`.

    Objects that are neither code nor plain values, tensors or arrays count by their type alone.
    """
    path = _own_file(cls)
    if path is not None:
        return sha256_file(path)
    survey = _Survey()
    survey.follow(cls)
    return f"{sha256_json(survey.found)}:{'compiled' if survey.compiled else 'inline'}"


def _own_file(thing: type | FunctionType) -> Path | None:
    """Return the file that a class or function was written in, or None."""
    module = sys.modules.get(thing.__module__ or "")
    path = _module_file(module)
    if path is not None and thing.__module__ == "__main__":
        # `python -i my.py` and `%run my.py` leave a file's name to a namespace in which more is typed later.
        functions = [thing] if isinstance(thing, FunctionType) else [each for _, each in _functions(thing)]
        written_in = {Path(each.__code__.co_filename).name for each in functions} - {_GENERATED_IN}
        return path if not written_in or path.name in written_in else None
    return path


def _is_loose(thing: type | FunctionType) -> bool:
    """Tell whether a class or function is in no file and of no library: typed, in a notebook, or made by `exec`."""
    module = sys.modules.get(thing.__module__ or "")
    if module is None or thing.__module__ == "__main__":
        return _own_file(thing) is None
    return _module_file(module) is None and module.__spec__ is None  # else built into Python


def _module_file(module: ModuleType | None) -> Path | None:
    path = getattr(module, "__file__", None)
    return Path(path) if path and Path(path).is_file() else None


def _functions(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions of a class body by name, without their decorators and without those `dataclass` makes."""
    made = _GENERATED if dataclasses.is_dataclass(cls) else set()
    for name, value in sorted(vars(cls).items()):
        parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
        for part in parts:
            function = _plain_function(part)
            if function is not None and not (name in made and function.__code__.co_filename == _GENERATED_IN):
                yield name, function


def _plain_function(value: Any) -> FunctionType | None:
    """Take a function out of its decorators (`staticmethod`, `torch.no_grad`, `functools.cached_property`)."""
    if isinstance(value, functools.cached_property):
        value = value.func
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        value = value.__func__
    value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
    return value if isinstance(value, FunctionType) else None


class _Survey:
    """Collects the source of what is in no file, following what it refers to.

    Attributes:
        found: descriptions, in the order in which they were reached.
        compiled: True once some source could not be had.
    """

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.compiled = False
        self._described: dict[int, Any] = {}  # by id; the values keep the ids from being given again
        self._open: set[int] = set()

    def follow(self, thing: Any) -> Any:
        """Return a short description of a value; classes and functions in no file are described in full, once."""
        if isinstance(thing, ModuleType):
            return self._named(thing, thing.__name__)
        function = _plain_function(thing)
        if function is None and not isinstance(thing, type):
            return self._value(thing)
        code = thing if function is None else function
        name = f"{code.__module__}.{code.__qualname__}"
        if not _is_loose(code):
            return self._named(sys.modules[code.__module__], name)
        if id(code) not in self._described:
            self._described[id(code)] = code
            place = len(self.found)
            self.found.append(None)
            self.found[place] = [name, self._class(code) if isinstance(code, type) else self._function(code)]
        return name

    def _named(self, module: ModuleType, name: str) -> Any:
        """Describe something of a module: by name, and by the file's hash where the file is the user's own."""
        path = _module_file(module)
        if path is None or module.__name__.partition(".")[0] in _OURS:
            return name
        whole = path.resolve()
        return name if any(whole.is_relative_to(place) for place in _LIBRARIES) else [name, sha256_file(path)]

    def _class(self, cls: type) -> Any:
        members: dict[str, Any] = {}
        for name, function in _functions(cls):
            members.setdefault(name, []).append(self._function(function))
        for name, value in sorted(vars(cls).items()):
            if name not in members and name not in _NOT_CODE and not name.startswith(("__", "_abc_")):
                members[name] = self.follow(value)
        return [[self.follow(base) for base in cls.__bases__], members, self._fields(cls)]

    def _fields(self, cls: type) -> Any:
        if not dataclasses.is_dataclass(cls):
            return []
        return [
            [f.name, str(f.type), *map(self.follow, (f.default, f.default_factory, dict(f.metadata)))]
            for f in dataclasses.fields(cls)
        ]

    def _function(self, function: FunctionType) -> Any:
        try:
            text: Any = textwrap.dedent(inspect.getsource(function)).strip()
        except (OSError, TypeError, SyntaxError, IndentationError):
            self.compiled = True
            text = _code(function.__code__)
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        used = {name: self.follow(value) for name, value in _uses(function)}
        return [text, [self.follow(value) for value in defaults], used]

    def _value(self, value: Any) -> Any:
        if isinstance(value, _STABLE):
            return [type(value).__name__, repr(value)]
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if kind in ("torch.dtype", "torch.device"):
            return [kind, repr(value)]
        if id(value) in self._open:
            return kind  # it holds itself
        self._open.add(id(value))
        try:
            return [kind, self._content(value)]
        finally:
            self._open.remove(id(value))

    def _content(self, value: Any) -> Any:
        if isinstance(value, dict):
            return [[self.follow(key), self.follow(item)] for key, item in value.items()]
        if isinstance(value, (set, frozenset)):
            return sorted(repr(self.follow(item)) for item in value)
        if isinstance(value, (list, tuple)):
            return [self.follow(item) for item in value]
        if isinstance(value, functools.partial):
            return [self.follow(value.func), self.follow(value.args), self.follow(value.keywords)]
        if dataclasses.is_dataclass(value):
            return [
                self.follow(type(value)),
                [[f.name, self.follow(getattr(value, f.name, None))] for f in dataclasses.fields(value)],
            ]
        if callable(value) and isinstance(getattr(value, "__qualname__", None), str):  # of a library in C
            return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
        return _numbers(value)


def _uses(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the global and enclosing names that a function reads, with their values now."""
    names = dict.fromkeys(_globals_read(function.__code__))
    for name in names:
        if name in function.__globals__ and not hasattr(builtins, name):
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not bound yet
            continue


def _globals_read(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_read(constant)


def _code(code: CodeType) -> Any:
    """Describe compiled code: instructions, names and constants, not where it stood."""
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    names = [code.co_names, code.co_varnames, code.co_freevars]
    return [sys.version_info[:2], code.co_code.hex(), constants, *map(list, names)]


def _numbers(value: Any) -> str | None:
    """Return a hash of a tensor's or an array's numbers, None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            value = value.numpy()
        except TypeError:  # bfloat16, which numpy does not have
            value = value.double().numpy()
    if not all(hasattr(value, name) for name in ("tobytes", "dtype", "shape")) or value.dtype.hasobject:
        return None
    return hashlib.sha256(f"{value.dtype} {value.shape} ".encode() + value.tobytes()).hexdigest()
