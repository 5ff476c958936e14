"""Read a benchmark on one's own data from a TOML file: no code needed, every mistake answered with one sentence.

    [benchmark]  name, title
    [corpus]     kind ("folder" | "csv"), root, licence, citation, and the fields of `corpora.own.FolderCorpus` or
                 `CsvCorpus` that say where labels, groups and folds are found
    [stream]     classes_per_session, orders, input_seconds, first_session_epochs
    [test]       rule ("fraction" | "fold" | "groups") and its settings (see `own_benchmark.TestRule`)

The files in `examples/` show every field in use.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from audiocl_bench import benchmarks, own_benchmark
from audiocl_bench.corpora.base import Corpus
from audiocl_bench.corpora.own import CsvCorpus, FolderCorpus
from audiocl_bench.errors import AudioclError, ConfigError, unknown_name
from audiocl_bench.own_benchmark import OwnBenchmark, TestRule

V = TypeVar("V")

_FRAMES_MULTIPLE = 16  # an EAT patch is 16 frames long; what is left over would be cut off
_REQUIRED: Any = object()
_CSV_OPTIONAL = ["label", "group", "fold", "missing", "delimiter"]
_FIELDS: dict[str, tuple[str, ...]] = {
    "benchmark": ("name", "title"),
    "corpus": (
        *("kind", "root", "licence", "citation", "where", "label_regex", "group_regex", "fold_regex"),
        *("csv", "path", *_CSV_OPTIONAL),
    ),
    "stream": ("classes_per_session", "orders", "input_seconds", "first_session_epochs"),
    "test": ("rule", "fraction", "seed", "folds", "groups", "split_within"),
}


def read(path: Path) -> OwnBenchmark:
    """Read the benchmark that the TOML file at `path` describes. The data itself is not touched.

    Raises:
        ConfigError: the file is missing, no TOML, or a field is missing, of the wrong type or out of range.
        UnknownNameError: a section or field that does not exist; the message suggests the nearest one.
    """
    data = _load(path)
    for section in data:
        if section not in _FIELDS:
            raise unknown_name(f"section of {path}", section, _FIELDS)
    head, stream, test = (_Section(path, name, data) for name in ("benchmark", "stream", "test"))
    corpus = _Section(path, "corpus", data)
    name = head.get("name", _name)
    title = head.get("title", _text, default=name)
    root = _root(path, corpus.get("root", _text))
    reader = _corpus(corpus, name, root)
    per_session = stream.get("classes_per_session", _sizes)
    orders = stream.get("orders", _orders, default=5)
    seconds = stream.get("input_seconds", _positive, default=5.12)
    epochs = stream.get("first_session_epochs", _count, default=10)
    rule = _test_rule(test)
    _check_source(corpus, rule)
    return OwnBenchmark(
        name=name,
        title=title,
        corpus=reader,
        protocols=(own_benchmark.PROTOCOL,),
        num_orders=orders if isinstance(orders, int) else len(orders),
        classes_per_session=per_session,
        frames=_frames(seconds),
        first_session_epochs=epochs,
        own_data=True,
        source=path,
        root=root,
        test=rule,
        orders=() if isinstance(orders, int) else orders,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            return tomllib.load(handle)
    except FileNotFoundError as cause:
        raise ConfigError(f"no benchmark file {path}: correct the path.") from cause
    except OSError as cause:
        raise ConfigError(f"the benchmark file {path} cannot be read ({cause.strerror}): correct the path.") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"{path} is no valid TOML: {cause}.") from cause


class _Section:
    """One table of the file: refuses unknown fields, hands out checked values."""

    def __init__(self, path: Path, name: str, data: dict[str, Any]) -> None:
        self.path, self.name = path, name
        if name not in data:
            raise ConfigError(f"{path} has no section [{name}]: add it.")
        if not isinstance(data[name], dict):
            raise ConfigError(f"{path}: {name} must be a section [{name}], not a value.")
        self._values: dict[str, Any] = data[name]
        for key in self._values:
            if key not in _FIELDS[name]:
                raise unknown_name(f"field of [{name}] in {path}", key, _FIELDS[name])

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, check: Callable[[Any], V], *, default: Any = _REQUIRED) -> V:
        """Return the field after `check`, which raises ValueError saying what the field must be."""
        if key not in self._values:
            if default is _REQUIRED:
                raise self.error(f"field '{key}' is missing: add it")
            result: V = default
            return result
        try:
            return check(self._values[key])
        except ValueError as cause:
            raise self.error(f"field '{key}' must be {cause}, not {self._values[key]!r}") from cause

    def forbid(self, keys: Iterable[str], why: str) -> None:
        """Refuse fields that exist but mean nothing here."""
        for key in keys:
            if key in self:
                raise self.error(f"field '{key}' {why}: remove it")

    def error(self, sentence: str) -> ConfigError:
        return ConfigError(f"{self.path}, section [{self.name}]: {sentence}.")


def _root(path: Path, text: str) -> Path:
    expanded = os.path.expandvars(text)
    if left := re.search(r"\$\{?\w+\}?", expanded):
        raise ConfigError(
            f"{path}, section [corpus]: field 'root' uses {left.group()}, which is not set: set this environment "
            "variable or write the folder."
        )
    return Path(os.path.normpath(path.resolve().parent / Path(expanded).expanduser()))


def _corpus(section: _Section, name: str, root: Path) -> Corpus:
    kind = section.get("kind", _one_of("folder", "csv"))
    section.get("root", _text)
    fields: dict[str, Any] = {
        "licence": section.get("licence", _text, default="not stated"),
        "citation": section.get("citation", _text, default=""),
        "where": section.get("where", _where, default={}),
    }
    optional = ["label_regex", "group_regex", "fold_regex"]
    if kind == "csv":
        fields |= {key: section.get(key, _text) for key in ("csv", "path")}
        optional += _CSV_OPTIONAL
    else:
        section.forbid(("csv", "path", *_CSV_OPTIONAL), 'belongs to kind = "csv"')
    fields |= {key: section.get(key, _raw_text) for key in optional if key in section}
    try:
        return (CsvCorpus if kind == "csv" else FolderCorpus)(root=root, name=name, **fields)
    except AudioclError as error:
        raise type(error)(f"{section.path}, section [{section.name}]: {error}") from error


def _check_source(corpus: _Section, rule: TestRule) -> None:
    needed = {"fold": "fold", "groups": "group"}.get(rule.rule)
    if needed is not None and needed not in corpus and f"{needed}_regex" not in corpus:
        column = f"{needed} (a column) or " if "csv" in corpus else ""
        rule_of = f'rule = "{rule.rule}" in [test]'
        raise corpus.error(f"{rule_of} needs the {needed} of every clip: add {column}{needed}_regex")


def _test_rule(section: _Section) -> TestRule:
    rule = section.get("rule", _one_of("fraction", "fold", "groups"))
    fields = {"fraction": {"fraction", "seed"}, "fold": {"folds"}}.get(rule)
    if fields is not None:
        others = {"fraction", "seed", "folds", "groups", "split_within"} - fields
        section.forbid(sorted(others), f'has no meaning with rule = "{rule}"')
    if rule == "fraction":
        share, seed = section.get("fraction", _share), section.get("seed", _seed, default=0)
        return TestRule("fraction", fraction=share, seed=seed)
    if rule == "fold":
        return TestRule("fold", folds=section.get("folds", _names_or_numbers))
    section.forbid(["folds"], 'has no meaning with rule = "groups"')
    groups = section.get("groups", _names_or_numbers, default=())
    within = section.get("split_within", _names, default=())
    if groups and not within:
        section.forbid(["fraction", "seed"], "has no meaning beside a list of test groups")
    # Test groups named one by one bring no share; a class split clip by clip needs one.
    needs_share = bool(within) or not groups
    return TestRule(
        "groups",
        fraction=section.get("fraction", _share) if needs_share else None,
        seed=section.get("seed", _seed, default=0),
        groups=groups,
        split_within=within,
    )


def _frames(seconds: float) -> int:
    return math.ceil(max(1, round(100 * seconds)) / _FRAMES_MULTIPLE) * _FRAMES_MULTIPLE


# Checks: each returns the value in its final type, or raises ValueError completing "field 'x' must be ...".


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text that is not empty")
    return value


def _raw_text(value: Any) -> str:
    if not isinstance(value, str) or not value:  # a delimiter may be a blank
        raise ValueError("a text that is not empty")
    return value


def _where(value: Any) -> dict[str, Any]:
    def plain(item: Any) -> bool:
        return isinstance(item, (str, int))

    if not isinstance(value, dict) or not all(
        plain(item) or (isinstance(item, list) and item and all(map(plain, item))) for item in value.values()
    ):
        raise ValueError("a table of column = value, or column = [values], with texts or whole numbers")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", value):
        raise ValueError("a short name of small letters, digits, '-', '_' and '.'")
    if value in benchmarks.names():
        raise ValueError("another name than a built-in benchmark's")
    return value


def _one_of(*allowed: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(" or ".join(f'"{name}"' for name in allowed))
        return value

    return check


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _count(value: Any) -> int:
    if not _whole(value, 1):
        raise ValueError("a whole number of at least 1")
    return int(value)


def _seed(value: Any) -> int:
    if not _whole(value, 0):
        raise ValueError("a whole number of at least 0")
    return int(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> float:
    if not _number(value) or value <= 0:
        raise ValueError("a number of seconds above 0")
    return float(value)


def _share(value: Any) -> float:
    if not _number(value) or not 0 < value < 1:
        raise ValueError("a number between 0 and 1")
    return float(value)


def _sizes(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list) and value and all(_whole(size, 1) for size in value):
        return tuple(value)
    if not _whole(value, 1):
        raise ValueError("a whole number of at least 1, or a list of them, one per session")
    return int(value)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError("a list of names")
    if len(set(value)) < len(value):
        raise ValueError("a list that names each thing once")
    return tuple(value)


def _names_or_numbers(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        value = [str(item) if _whole(item, 0) else item for item in value]
    return _names(value)


def _orders(value: Any) -> int | tuple[tuple[str, ...], ...]:
    if _whole(value, 1):
        return int(value)
    if not isinstance(value, list) or not value or not all(isinstance(order, list) for order in value):
        raise ValueError("a number of orders, or a list of lists of class names")
    return tuple(_names(order) for order in value)
