"""The page about the methods: equal to the file, complete, and true to the settings it names."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from audiocl_bench import config, registry
from audiocl_bench.method import Card
from audiocl_bench.report import method_page

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = [name for name in registry.names() if registry.load(name).__module__.startswith("audiocl_methods.")]


def test_the_file_is_what_the_page_says() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert text == method_page.page(), f"docs/methods.md is out of date: run `{method_page.COMMAND}`"


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_setting_and_preset_is_there(name: str) -> None:
    cls = registry.load(name)
    section = re.split(r"\n## ", method_page.page().partition(f"\n## {name}\n")[2])[0]
    assert isinstance(cls.card, Card)
    assert cls.card.paper in section
    for field in dataclasses.fields(cls.Config):
        row = next(line for line in section.splitlines() if line.startswith(f"| `{field.name}` |"))
        assert field.metadata["source"].replace("|", "\\|") in row
    for preset in cls.Config.sources:
        assert f"`{name}@{preset}`" in section


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_preset_builds_and_is_known_by_its_name(name: str) -> None:
    cls = registry.load(name)
    for preset, values in cls.Config.sources.items():
        built = config.build(cls.Config, "none", {"preset": preset}, owner=name)
        for key, value in values.items():
            assert getattr(built, key) == value, (preset, key)
        default = next(f.default for f in dataclasses.fields(cls.Config) if f.name == "preset")
        assert built.variant == ("" if preset == default else preset)
    for benchmark, values in cls.Config.presets.items():
        built = config.build(cls.Config, benchmark, {}, owner=name)
        assert all(getattr(built, key) == value for key, value in values.items())


def test_a_method_without_a_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load("ncm"), "card", None)
    with pytest.raises(ValueError, match="ncm"):
        method_page.page()
