"""Find methods: by decorator, by entry point (`audiocl.methods`), or by path (`my.py:MyMethod`). Loads lazily."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from contextvars import ContextVar
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from audiocl_bench.errors import AudioclError, ConfigError, unknown_name
from audiocl_bench.files import sha256_file
from audiocl_bench.method_source import source_hash

if TYPE_CHECKING:
    from audiocl_bench.method import Method

GROUP = "audiocl.methods"
_CLONE = Path(__file__).resolve().parent.parent
_BY_PATH = "audiocl_user_"  # begins the module name of a file given by path
_added: dict[str, type[Method]] = {}
_importing: ContextVar[bool] = ContextVar("importing a method file", default=False)


def add(name: str, cls: type[Method]) -> None:
    """Register a method class under `name`; called by the decorator `audiocl_bench.method.register`."""
    _added[name] = cls


def names() -> tuple[str, ...]:
    """Return the names of all methods that can be loaded, without importing any of them."""
    return tuple(sorted({*targets(), *_added}))


def importing() -> bool:
    """Tell whether the code that asks runs only because its file is imported for a method class in it."""
    return _importing.get()


def load(spec: str) -> type[Method]:
    """Return the method class for a name or for `path/to/file.py:ClassName`.

    Raises:
        UnknownNameError: no method has that name; the nearest names are listed.
        ConfigError: the file or class does not exist, cannot be imported, or is no `Method`.
    """
    if ".py" in spec:
        return _from_file(spec)
    if spec in _added:
        return adopt(_added[spec])
    known = targets()
    if spec not in known:
        raise unknown_name("method", spec, names(), hint="`audiocl list methods` shows all.")
    cls = _checked(_import(known[spec], spec), spec)
    _name(cls, spec)
    return cls


def adopt(cls: type[Method]) -> type[Method]:
    """Check, name and identify a method class that Python code holds: from a notebook's cell or an imported module.

    A class that an entry point offers is what its name gives. Any other one gets the hash of its source, as a file
    given by path does, so that an edited class makes a new run.

    Raises:
        ConfigError: it is no complete `Method`, or it has the name of a method that an entry point offers.
    """
    _checked(cls, getattr(cls, "__qualname__", str(cls)))
    _name(cls, cls.__name__.lower())
    target = targets().get(cls.name)
    if target is not None:
        if _import(target, cls.name) is cls:
            return cls
        raise ConfigError(
            f"method class {cls.__qualname__} has the name '{cls.name}' of another method, and their results would be "
            "taken for each other: give it a name of its own with @register(NAME)."
        )
    if not (cls.__module__.startswith(_BY_PATH) and vars(cls).get("source_hash")):  # those are as they were read
        cls.source_hash = source_hash(cls)
    return cls


def targets() -> dict[str, str]:
    """Map method names to "module:Class", from installed entry points and, in a clone, from pyproject.toml.

    A clone's own methods become importable.
    """
    found = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    project = _CLONE / "pyproject.toml"
    if project.is_file() and (_CLONE / "methods").is_dir():
        with project.open("rb") as handle:
            declared = tomllib.load(handle)["project"]["entry-points"][GROUP]
        _make_importable(_CLONE / "methods", "audiocl_methods")
        found = {**found, **declared}
    return found


def _make_importable(folder: Path, package: str) -> None:
    """Import a clone's `methods/` under its installed name, also where another copy of audiocl is installed."""
    if package in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)


def _import(target: str, name: str) -> object:
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as cause:  # an outside package may fail in any way
        told = "" if isinstance(cause, (ImportError, AttributeError)) else f"{type(cause).__name__}: "
        raise ConfigError(f"method '{name}' ({target}) cannot be imported: {told}{cause}.") from cause


def _from_file(spec: str) -> type[Method]:
    file_name, _, attribute = spec.rpartition(":")
    if not file_name or not file_name.endswith(".py"):
        raise ConfigError(f"method '{spec}' must name the class too, for example {spec.partition(':')[0]}:MyMethod.")
    path = Path(file_name).expanduser()
    if not path.is_file():
        raise ConfigError(f"method file {path} does not exist: check the path.")
    module_name = f"{_BY_PATH}{path.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    targets()  # a clone's own methods become importable: the file may build on one of them
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    before = _importing.set(True)
    try:
        module_spec.loader.exec_module(module)
    except Exception as cause:
        del sys.modules[module_name]
        kind = "" if isinstance(cause, AudioclError) else f"{type(cause).__name__}: "
        raise ConfigError(f"method file {path} fails on import: {kind}{str(cause).removesuffix('.')}.") from cause
    finally:
        _importing.reset(before)
    if not hasattr(module, attribute):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise unknown_name(f"class in {path}", attribute, classes)
    cls = _checked(getattr(module, attribute), spec)
    _name(cls, attribute.lower())
    cls.source_hash = sha256_file(path)
    return cls


def _name(cls: type[Method], name: str) -> None:
    """Name a class that was not registered. A name inherited from its parent would claim the parent's results."""
    if not vars(cls).get("name"):
        cls.name = name


def _checked(value: object, spec: str) -> type[Method]:
    from audiocl_bench.method import Method

    if not (isinstance(value, type) and issubclass(value, Method)):
        raise ConfigError(f"'{spec}' is not a method: it must be a class derived from audiocl_bench.method.Method.")
    missing = sorted(getattr(value, "__abstractmethods__", ()))
    if missing:
        raise ConfigError(f"method '{spec}' is incomplete: it lacks {', '.join(missing)}.")
    return value
