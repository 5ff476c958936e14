"""`audiocl list`: what there is to run. Everything fits a terminal of 80 columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List methods, a method's settings, benchmarks, backbones or corpora.")

_BUILT_IN = "audiocl_methods"


@app.command()
def methods(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/methods.md: every built-in method in full.")
    ] = False,
) -> None:
    """List every method that can be run: built-in, or from an installed plugin."""
    if markdown:
        from audiocl_bench.report.method_page import page

        typer.echo(page(), nl=False)
        return
    from rich.console import Console

    from audiocl_bench import registry
    from audiocl_bench.report.tables import listing

    rows = []
    for name in registry.names():
        cls = registry.load(name)
        summary = (cls.__doc__ or "").strip().partition("\n")[0]
        package = cls.__module__.partition(".")[0]
        rows.append((name, summary if package == _BUILT_IN else f"{summary} (from {package})"))
    Console().print(listing(rows, ("method", "what it does"), "Methods"))
    _footer("audiocl run --method NAME; your own: --method file.py:Class")


@app.command()
def settings(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Name of a method, or file.py:Class.")],
) -> None:
    """List a method's settings: default, unit, and where each default comes from."""
    import dataclasses

    from rich.console import Console

    from audiocl_bench import registry
    from audiocl_bench.report.tables import listing

    cls = registry.load(method)
    rows = []
    for field in dataclasses.fields(cls.Config):
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        unit, source = (field.metadata.get(key, "") for key in ("unit", "source"))
        rows.append((field.name, str(default).lower(), f"[{unit}] {source}" if unit else source))
    Console().print(listing(rows, ("setting", "default", "[unit] source or reason"), f"Settings of {cls.name}"))
    for benchmark, values in cls.Config.presets.items():
        preset = " ".join(f"{key}={value}" for key, value in values.items())
        Console(highlight=False).print(f"preset for {benchmark}: {preset}", markup=False)
    for recipe, values in cls.Config.sources.items():
        preset = " ".join(f"{key}={value}" for key, value in values.items())
        Console(highlight=False).print(f"{cls.name}@{recipe}: {preset or 'the defaults'}", markup=False)
    _footer(f"audiocl run --method {method} --set SETTING=VALUE")


@app.command()
def benchmarks(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page docs/benchmarks.md: splits, leaks, licences in full.")
    ] = False,
) -> None:
    """List the built-in benchmarks; a .toml file describes your own."""
    if markdown:
        from audiocl_bench.report.benchmark_page import page

        typer.echo(page(), nl=False)
        return
    from rich.console import Console

    from audiocl_bench import benchmarks as catalogue
    from audiocl_bench.report.tables import listing

    every = [catalogue.get(name) for name in catalogue.names()]
    rows = []
    for benchmark in every:
        facts = benchmark.describe()
        stream = f"{facts['sessions']} x {facts['classes_per_session']}"
        rows.append((benchmark.name, benchmark.title, stream, f"{facts['clips']:,}", benchmark.first_session_epochs))
    columns = ("benchmark", "what", "sessions x classes", "clips", "E_0")
    Console().print(listing(rows, columns, "Benchmarks"))
    _footer(
        "audiocl run --bench NAME, or all; your own: --bench my.toml; in miniature: --data mini\n"
        f"--protocol {' or '.join(every[0].protocols)}; --orders 0-{every[0].num_orders - 1}; "
        "E_0: first-session epochs"
    )


@app.command()
def backbones() -> None:
    """List pretrained networks that have a name; a path to weights works too."""
    from rich.console import Console

    from audiocl_bench import backbones as catalogue
    from audiocl_bench.report.tables import listing

    rows = []
    for row in catalogue.list_rows():
        source = re.sub(r"(@[0-9a-f]{7})[0-9a-f]{33}$", r"\1", row.source)
        rows.append((row.name, f"{row.title}\n{source}, {row.parameters / 1e6:.3g} M"))
    Console().print(listing(rows, ("backbone", "what; weights, parameters"), "Backbones"))
    _footer("audiocl run --backbone NAME; your own EAT, SSLAM or Whisper: --backbone PATH")


@app.command()
def corpora(
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Look here too, as `run --data` does.")
    ] = None,
) -> None:
    """List the corpora of the built-in benchmarks, where they come from, and whether they are here."""
    from audiocl_bench import corpora as catalogue
    from audiocl_bench import files
    from audiocl_bench.errors import CorpusError

    cards = {}
    for name in catalogue.names():
        corpus = catalogue.get(name)
        details = {"licence": corpus.info.licence}
        try:
            details["here"] = str(corpus.find(data))
        except CorpusError:
            details["missing"] = corpus.info.how_to_get
        cards[name] = (corpus.info.title, details)
    _cards("Corpora", cards)
    _footer(f"audiocl run looks in --data DIR, then in {files.home() / 'data'}")


def _cards(title: str, cards: Mapping[str, tuple[str, Mapping[str, str]]]) -> None:
    """Print one block per thing: its name and what it is, then its details, indented and wrapped between words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(title, style="bold"))
    for name, (heading, details) in cards.items():
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(overflow="fold")
        for key, value in details.items():
            grid.add_row(Text(f"    {key}"), Text(value))
        console.print(Text(f"\n{name}", style="bold").append(f"  {heading}", style="not bold"), grid, sep="\n")


def _footer(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(f"\n{text}", style="dim"))
