"""Method settings: frozen dataclasses whose fields carry their unit and source; presets; overrides by name."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union

from audiocl_bench.errors import ConfigError, unknown_name

C = TypeVar("C", bound="MethodConfig")


def setting(
    default: Any,
    source: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    later: bool = False,
) -> Any:
    """Declare one hyperparameter of a `MethodConfig`.

    Args:
        default: its default value.
        source: where the default comes from (paper section, official code) or why it was chosen.
        unit: unit or meaning of the number.
        low, high: inclusive bounds, checked when the config is built.
        later: the setting was added when results existed already, and its default is what they were made with. At its
            default it is therefore no part of a run's identity (see `MethodConfig.as_dict`), and its default is final.
    """
    metadata = {"source": source, "unit": unit, "low": low, "high": high, "later": later}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class MethodConfig:
    """Base of every method's settings. Subclasses are frozen dataclasses whose fields are made by `setting`.

    `presets` maps a benchmark name to the settings that differ there; each preset's source is said beside it. `sources`
    maps the name of a recipe (a published one, or a row of a paper's table) to its settings; a config that has any
    declares a setting `preset` of text, the default recipe. The user writes `METHOD@PRESET` or sets it.

    Raises:
        ConfigError: a numeric field is no finite number or outside the bounds it declares.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low, high = field.metadata.get("low"), field.metadata.get("high")
            for item in value if isinstance(value, tuple) else (value,):
                if not isinstance(item, (int, float)) or isinstance(item, bool):
                    continue
                if not math.isfinite(item):
                    raise ConfigError(f"setting '{field.name}' is {item}, but it must be a finite number.")
                if (low is not None and item < low) or (high is not None and item > high):
                    bounds = (
                        f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
                    )
                    raise ConfigError(f"setting '{field.name}' is {item}, but it must be {bounds}.")

    @property
    def variant(self) -> str:
        """The chosen preset where it is not the default one, else ""; `METHOD@PRESET` on the command line."""
        default = {field.name: field.default for field in dataclasses.fields(self)}.get("preset")
        chosen = getattr(self, "preset", default)
        return "" if chosen == default else str(chosen)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values (tuples as lists), ready for JSON and for the identity of a run.

        A setting that was added `later` is left out at its default: a run of then and a run of now are the same run.
        """
        fields = dataclasses.fields(self)
        unchanged = {f.name for f in fields if f.metadata.get("later") and getattr(self, f.name) == f.default}
        given = {name: value for name, value in dataclasses.asdict(self).items() if name not in unchanged}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def build(cls: type[C], benchmark: str, overrides: Mapping[str, Any], *, owner: str) -> C:
    """Build a config: defaults, published recipe, preset for `benchmark`, then `overrides` (strings are converted).

    Args:
        cls: the method's config class.
        benchmark: benchmark name, for presets.
        overrides: setting name -> value; a text value is read as the setting's type.
        owner: the method's name, for messages.

    Raises:
        UnknownNameError: an override names no setting; the nearest names are listed.
        ConfigError: a value cannot be read as the setting's type or is out of range.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {**cls.presets.get(benchmark, {}), **overrides}
    if cls.sources:
        [preset] = [field for field in dataclasses.fields(cls) if field.name == "preset"]
        recipe = str(values.get("preset", preset.default))
        if recipe not in cls.sources:
            raise unknown_name(f"preset of {owner}", recipe, list(cls.sources))
        values = {**cls.sources[recipe], **values}
    for name in values:
        if name not in known:
            raise unknown_name(f"setting of {owner}", name, known)
    return cls(**{name: convert(value, hints[name], name) for name, value in values.items()})


def convert(value: Any, kind: Any, name: str) -> Any:
    """Read `value` (text from the command line, or a TOML value) as the type `kind` of setting `name`.

    Understands bool, int, float, str, Literal, tuples ("a,b,c") and unions with None ("none").

    Raises:
        ConfigError: the value does not fit; the sentence names the setting and what would fit.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        nothing = value is None or (isinstance(value, str) and value.lower() in ("none", "null", "auto"))
        if nothing and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        for option in inner[:-1]:
            try:
                return convert(value, option, name)
            except ConfigError:
                continue
        return convert(value, inner[-1], name)
    if origin is Literal:
        for option in arguments:
            if (type(value) is type(option) and value == option) or (isinstance(value, str) and value == str(option)):
                return option
        raise ConfigError(f"setting '{name}' is {value!r}, but it must be one of {', '.join(map(str, arguments))}.")
    if origin is tuple:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(convert(item, arguments[0], name) for item in items)
    if kind is bool:
        text = str(value).lower()
        if text in ("true", "yes", "on", "1"):
            return True
        if text in ("false", "no", "off", "0"):
            return False
        raise ConfigError(f"setting '{name}' is {value!r}, but it must be true or false.")
    try:
        if kind is int and (isinstance(value, bool) or float(value) != int(float(value))):
            raise ValueError
        return int(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError):
        what = {int: "a whole number", float: "a number"}.get(kind, f"of type {getattr(kind, '__name__', kind)}")
        raise ConfigError(f"setting '{name}' is {value!r}, but it must be {what}.") from None


def parse_overrides(items: Sequence[str]) -> dict[str, str]:
    """Read `--set key=value` items into a mapping.

    Raises:
        ConfigError: an item has no '='.
    """
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item!r} must look like key=value, for example --set rank=8.")
        pairs[key.strip().replace("-", "_")] = value.strip()
    return pairs


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings; tables become dotted names (`[pace] rank = 8` is `pace.rank`).

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        with path.open("rb") as handle:
            content = tomllib.load(handle)
    except OSError as cause:
        raise ConfigError(f"settings file {path} cannot be read ({cause.strerror}): check the path.") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"settings file {path} is not valid TOML: {cause}.") from cause
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat
