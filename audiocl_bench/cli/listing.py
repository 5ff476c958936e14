"""`audiocl list`: what there is to run."""

from __future__ import annotations

from collections.abc import Sequence

import typer

app = typer.Typer(no_args_is_help=True, help="List methods, benchmarks, backbones or corpora.")


@app.command()
def methods() -> None:
    """List every method that can be run: built-in, or from an installed plugin."""
    from audiocl_bench import registry

    rows = []
    for name in registry.names():
        cls = registry.load(name)
        summary = (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""
        rows.append((name, summary, cls.__module__.partition(".")[0]))
    _print(rows, ("method", "what it does", "from"), "Methods (audiocl run --method NAME; also file.py:Class)")


@app.command()
def benchmarks() -> None:
    """List the built-in benchmarks; a .toml file describes your own."""
    from audiocl_bench import benchmarks as catalogue

    rows = []
    for name in catalogue.names():
        facts = catalogue.get(name).describe()
        rows.append(
            (
                name,
                facts["title"],
                f"{facts['sessions']} x {facts['classes_per_session']}",
                facts["classes"],
                facts["clips"],
                facts["first_session_epochs"],
                ", ".join(facts["protocols"]),
                facts["orders"],
            )
        )
    columns = ("benchmark", "what", "sessions x classes", "classes", "clips", "E_0", "protocols", "orders")
    _print(rows, columns, "Benchmarks (audiocl run --bench NAME, all, or your.toml)")


@app.command()
def backbones() -> None:
    """List pretrained networks that have a name; a path to weights works too."""
    from audiocl_bench import backbones as catalogue

    rows = [
        (row.name, row.title, row.network, f"{row.parameters / 1e6:.1f} M", row.source) for row in catalogue.list_rows()
    ]
    _print(rows, ("backbone", "what", "network", "parameters", "weights"), "Backbones (run --backbone NAME or PATH)")


@app.command()
def corpora() -> None:
    """List the corpora of the built-in benchmarks, where they come from, and whether they are here."""
    from audiocl_bench import corpora as catalogue
    from audiocl_bench.errors import CorpusError

    rows = []
    for name in catalogue.names():
        corpus = catalogue.get(name)
        try:
            where = str(corpus.find(None))
        except CorpusError:
            where = "not found"
        rows.append((name, corpus.info.title, corpus.info.folder, corpus.info.licence, corpus.info.how_to_get, where))
    columns = ("corpus", "title", "folder", "licence", "how to get it", "here")
    _print(rows, columns, "Corpora (run looks in --data DIR, then in data/ of the cache directory)")


def _print(rows: Sequence[Sequence[object]], columns: tuple[str, ...], title: str) -> None:
    from rich.console import Console

    from audiocl_bench.report.tables import listing

    Console().print(listing(rows, columns, title))
