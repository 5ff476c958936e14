"""`audiocl table`: the paper's tables with our numbers, or any table of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from audiocl_bench.request import names, numbers

if TYPE_CHECKING:
    import pandas as pd

    from audiocl_bench.report.sheets import Sheet

Format = Literal["markdown", "latex", "csv", "html", "parquet"]
MINI = Path("mini")

_SUFFIXES: dict[str, Format] = {
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".html": "html",
    ".parquet": "parquet",
}
_WHICH, _OUTPUT = "Which runs", "Output"


def table(
    number: Annotated[
        str | None, typer.Argument(help="A table of the paper: 1, 2, 3, 4 or 12. Without it: rows by columns.")
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="WHAT", help="method, benchmark, protocol, backbone, order or seed.")
    ] = None,
    cols: Annotated[str | None, typer.Option("--cols", metavar="WHAT", help="Likewise (default: benchmark).")] = None,
    score: Annotated[
        str, typer.Option("--score", metavar="NAME", help="final_accuracy, forgetting, ... (columns of runs).")
    ] = "final_accuracy",
    bench: Annotated[
        list[str] | None,
        typer.Option("--bench", "--benchmark", "-b", metavar="NAME", rich_help_panel=_WHICH, help="Only these."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="NAME", rich_help_panel=_WHICH, help="Only this one (a table of the paper: eat-base)."
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol", metavar="NAME", rich_help_panel=_WHICH, help="Only this one (a table of the paper: paper)."
        ),
    ] = None,
    orders: Annotated[
        str | None, typer.Option("--orders", metavar="LIST", rich_help_panel=_WHICH, help="Only these: 0-4 or 0,2.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="LIST", rich_help_panel=_WHICH, help="Only these: 0-2.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            rich_help_panel=_WHICH,
            help="'mini': the miniatures. A folder is only told to the commands that fill empty cells.",
        ),
    ] = None,
    results: Annotated[
        list[str] | None,
        typer.Option(
            "--results",
            metavar="DIR",
            rich_help_panel=_WHICH,
            help="Directory of results, or a folder of such directories. Repeatable (default: results/ in the cache).",
        ),
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format", rich_help_panel=_OUTPUT, help="Default: by the name of --out, markdown on the terminal."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", rich_help_panel=_OUTPUT, help="Write there.")
    ] = None,
) -> None:
    """Print a table of the paper with our numbers beside it, or any table of runs.

    A number is the mean over class orders and seeds with its 95 % interval; runs
    of unlike settings, weights or data are never averaged. The best is bold,
    footnotes say where data, network or split differ from the paper's, and empty
    cells say which command fills them. Own data, miniatures and stand-in networks
    never share a table with other data: such runs get a table of their own.

    [bold]Examples[/bold]

      audiocl table 2

      audiocl table 4 --protocol grouped --orders 0-4 --out table4.tex

      audiocl table --rows method --cols benchmark --score forgetting

      audiocl table 3 --bench my.toml --backbone weights/

      audiocl table 2 --data mini --backbone eat-mini --out table2.html
    """
    from audiocl_bench.errors import ConfigError

    chosen = _format(form, out)
    if number is None:
        if data not in (None, MINI):
            raise ConfigError("--data DIR goes with a table of the paper: give its number, or leave --data out.")
        shown = _free(
            results,
            rows=rows or "method",
            cols=cols or ("benchmark" if rows != "benchmark" else "method"),
            score=score,
            filters={
                "benchmark": None if bench is None else names(bench, "--bench"),
                "backbone": None if backbone is None else (backbone,),
                "protocol": None if protocol is None else (protocol,),
                "order": None if orders is None else numbers(orders, "--orders"),
                "seed": None if seeds is None else numbers(seeds, "--seeds"),
            },
            mini=data == MINI,
        )
    elif rows is not None or cols is not None:
        raise ConfigError(f"table {number} of the paper has its own rows and columns: leave --rows and --cols out.")
    else:
        shown = [
            published(
                number,
                results=results,
                bench=bench,
                backbone=backbone or "eat-base",
                protocol=protocol,
                orders=orders,
                seeds=seeds,
                data=data,
                score=score,
            )
        ]
    _give(shown, chosen, out)


def published(
    number: str,
    *,
    results: list[str] | None,
    bench: list[str] | None,
    backbone: str,
    protocol: str | None,
    orders: str | None,
    seeds: str | None,
    data: Path | None,
    score: str = "final_accuracy",
    may_be_new: bool = False,
) -> Sheet:
    """Return a table of the paper for the options of a command.

    Args:
        number: of the table.
        results, bench, backbone, protocol, orders, seeds, data, score: as typed.
        may_be_new: a results directory need not exist yet.
    """
    import dataclasses

    from audiocl_bench.report import paper
    from audiocl_bench.results import ResultsDir

    places = [ResultsDir(path) for path in results] if results else None
    sheet = paper.table(
        number,
        places if may_be_new else results,
        backbone=backbone,
        protocol=protocol,
        mini=data == MINI,
        benchmarks=None if bench is None else _benchmarks(names(bench, "--bench")),
        orders=None if orders is None else numbers(orders, "--orders"),
        seeds=None if seeds is None else numbers(seeds, "--seeds"),
        score=score,
    )
    typed = places[0].place.typed if places else None
    return dataclasses.replace(sheet, data=None if data == MINI else data, results=typed)


def _benchmarks(given: tuple[str, ...]) -> tuple[str, ...]:
    """Read 'all' as the six."""
    from audiocl_bench import benchmarks

    return tuple(name for item in given for name in (benchmarks.names() if item == "all" else (item,)))


def _free(
    results: list[str] | None,
    *,
    rows: str,
    cols: str,
    score: str,
    filters: dict[str, tuple[str, ...] | tuple[int, ...] | None],
    mini: bool,
) -> list[Sheet]:
    """Return a sheet for every block of the wanted runs."""
    from audiocl_bench.errors import ResultsError
    from audiocl_bench.report import sheets
    from audiocl_bench.report.paper import backbone_name

    sheets.checked_score(score)
    runs = sheets.load_runs(results)
    if mini:
        runs = runs[runs["mini"]]
    if chosen := filters["backbone"]:
        filters = {**filters, "backbone": tuple(backbone_name(str(name)) for name in chosen)}
    for column, wanted in filters.items():
        runs = runs if wanted is None else _only(runs, column, wanted)
    if len(runs) == 0:
        kind = "of miniatures " if mini else ""
        raise ResultsError(f"there are no runs {kind}to make a table of: run a benchmark first, or give --results.")
    parts = sheets.blocks(runs, rows=rows, cols=cols)
    return [
        sheets.free(part, rows=rows, cols=cols, score=score, name="table" if len(parts) == 1 else f"table-{position}")
        for position, part in enumerate(parts, start=1)
    ]


def _only(runs: pd.DataFrame, column: str, wanted: tuple[str, ...] | tuple[int, ...]) -> pd.DataFrame:
    """Keep runs by the value of one column; a value that no run has is an error."""
    from audiocl_bench.errors import unknown_name

    known = sorted(set(runs[column]))
    for value in wanted:
        if value not in known:
            raise unknown_name(f"{column} among the runs", str(value), [str(name) for name in known])
    return runs[runs[column].isin(wanted)]


def _format(form: Format | None, out: Path | None) -> Format:
    from audiocl_bench.errors import ConfigError

    if form is None:
        if out is None:
            return "markdown"
        if out.suffix not in _SUFFIXES:
            raise ConfigError(f"--out {out} does not tell a format: end it in {', '.join(_SUFFIXES)}, or add --format.")
        return _SUFFIXES[out.suffix]
    if form == "parquet" and out is None:
        raise ConfigError("--format parquet needs --out FILE.")
    return form


def _give(shown: list[Sheet], form: Format, out: Path | None) -> None:
    from audiocl_bench import files
    from audiocl_bench.errors import ResultsError
    from audiocl_bench.report import sheets

    if form == "parquet":
        assert out is not None
        sheets.write_parquet(shown, out)
    else:
        text = sheets.render(shown, form)
        if out is None:
            typer.echo(text, nl=False)
            return
        files.write_text(out, text, error=ResultsError)
    cells = sum(cell.mean is not None for sheet in shown for cell in sheet.cells)
    typer.echo(f"{out}: {len(shown)} {'table' if len(shown) == 1 else 'tables'}, {cells} numbers of ours.")
