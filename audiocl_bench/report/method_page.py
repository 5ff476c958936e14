"""The page about the built-in methods, `docs/methods.md`: from each method's class, its card and its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from audiocl_bench import registry
from audiocl_bench.method import Card, Method

COMMAND = "audiocl list methods --markdown > docs/methods.md"
"""What writes the page."""

PACKAGE = "audiocl_methods"
"""Only methods of this package are on the page: installed plugins have their own."""


def page() -> str:
    """Return docs/methods.md as text.

    Raises:
        ValueError: a built-in method has no card.
    """
    methods = [cls for name in registry.names() if _package(cls := registry.load(name)) == PACKAGE]
    parts = [
        f"<!-- Generated: do not edit. Write it anew with `{COMMAND}`. -->",
        "# The methods",
        "Every method is one file in [`methods/`](../methods) and uses the interface that plugins use. Whatever a "
        "method keeps is audited: its bytes are counted in every result, and predictions depend on one clip alone. "
        "`METHOD@PRESET` runs a preset, for example `audiocl run -m pace@no-msa`.",
        _table(
            ("method", "idea", "what is trained", "what is kept", "presets"),
            [(_link(cls), _idea(cls), _card(cls).trains, _card(cls).keeps, _presets(cls)) for cls in methods],
        ),
    ]
    for cls in methods:
        parts += _section(cls)
    return "\n\n".join(parts) + "\n"


def _section(cls: type[Method]) -> list[str]:
    card = _card(cls)
    parts = [f"## {cls.name}", f"{_idea(cls)} Source: {card.paper}"]
    if card.deviations:
        parts.append("Where it departs from the source, and why:")
        parts.append("\n".join(f"- {text}" for text in card.deviations))
    if cls.Config.sources:
        rows = [
            (f"`{cls.name}@{name}`", _settings(values) or "the defaults") for name, values in cls.Config.sources.items()
        ]
        parts.append(_table(("preset", "settings"), rows))
    if cls.Config.presets:
        rows = [(f"`{name}`", _settings(values)) for name, values in cls.Config.presets.items()]
        parts.append(_table(("on benchmark", "settings"), rows))
    defaults = [(f"`{f.name}`", _value(f.default), _origin(f)) for f in dataclasses.fields(cls.Config)]
    if defaults:
        parts.append(_table(("setting", "default", "source or reason"), defaults))
    return parts


def _idea(cls: type[Method]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _card(cls: type[Method]) -> Card:
    if cls.card is None:
        raise ValueError(f"method {cls.name} has no card for {COMMAND.rpartition(' ')[2]}")
    return cls.card


def _package(cls: type[Method]) -> str:
    return cls.__module__.partition(".")[0]


def _link(cls: type[Method]) -> str:
    return f"[`{cls.name}`](#{cls.name.replace('+', '')})"


def _presets(cls: type[Method]) -> str:
    return ", ".join(f"`{name}`" for name in cls.Config.sources) or "-"


def _origin(field: dataclasses.Field[Any]) -> str:
    unit, source = (str(field.metadata.get(key, "")) for key in ("unit", "source"))
    return f"{source} ({unit})" if unit else source


def _settings(values: Any) -> str:
    return ", ".join(f"`{name}={_value(value)}`" for name, value in values.items())


def _value(value: Any) -> str:
    """Return a value as it is typed after `--set`."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
