"""`audiocl leaderboard`: results as a static site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from audiocl_bench.results import ResultsDir

_RESULTS = typer.Option(
    "--results",
    metavar="DIR",
    help="Directory of results, or a folder of them; repeatable (default: results/ in the cache directory).",
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make a leaderboard of stored runs: plain pages that need no network.",
)


@app.command("build")
def build(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the site; an older site is replaced.")],
    results: Annotated[list[str] | None, _RESULTS] = None,
) -> None:
    """Write the leaderboard as a folder of HTML pages.

    One page per benchmark, protocol and pretrained network; one per run; one per
    pair of methods. Open index.html from the disk, or copy the folder to any web
    server. Every number is computed from the stored predictions; runs that failed
    an audit or declare a leak are listed apart and never ranked.

    [bold]Examples[/bold]

      audiocl leaderboard build --results results/ --out site/

      audiocl leaderboard build --results mine/ --results theirs/ --out site/
    """
    from rich.console import Console

    from audiocl_bench.report.leaderboard.site import build as build_site

    built = build_site(_directories(results), out)
    aside = f", {built.set_aside} set aside" if built.set_aside else ""
    Console().print(
        f"{built.boards} boards with {built.entries} entries from {built.runs} runs{aside}; {built.pages} pages.",
        f"Open {built.out / 'index.html'}",
        sep="\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


@app.command("serve")
def serve(
    site: Annotated[
        Path | None,
        typer.Argument(help="Folder of a built leaderboard; without it one is built for as long as it is served."),
    ] = None,
    results: Annotated[list[str] | None, _RESULTS] = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="TCP port; 0 takes a free one.")
    ] = 8000,
) -> None:
    """Show the leaderboard in a browser of this machine, until Ctrl-C.

    [bold]Examples[/bold]

      audiocl leaderboard serve --results results/

      audiocl leaderboard serve site/ --port 8080
    """
    import tempfile

    from audiocl_bench.errors import ConfigError
    from audiocl_bench.report.leaderboard.serve import HOST, server
    from audiocl_bench.report.leaderboard.site import build as build_site

    if site is not None and results:
        raise ConfigError("give either a built leaderboard or --results, not both.")
    with tempfile.TemporaryDirectory(prefix="audiocl-leaderboard-") as temporary:
        folder = site if site is not None else build_site(_directories(results), Path(temporary) / "site").out
        serving = server(folder, port)
        typer.echo(f"http://{HOST}:{serving.server_address[1]}/  (Ctrl-C ends)")
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped.")
        finally:
            serving.server_close()


def _directories(given: list[str] | None) -> list[ResultsDir]:
    """Return all directories of results at the places given."""
    from audiocl_bench.errors import ResultsError
    from audiocl_bench.results import result_dirs, results_at

    found: list[ResultsDir] = []
    for root in map(results_at, given) if given else [results_at(None)]:
        here = result_dirs(root)
        if not here:
            raise ResultsError(
                f"there are no runs in {root.name}: run a benchmark first, or point --results elsewhere."
            )
        found.extend(here)
    return found
