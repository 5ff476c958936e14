"""`audiocl splits`: rebuild and verify the frozen splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Frozen class orders and clip assignments: build them from the manifests, or verify them.",
)
_Manifests = Annotated[Path, typer.Option("--manifests", help="Folder of the corpora's file lists (CSV).")]


@app.callback()
def group() -> None:
    """Keep `build` a subcommand."""


@app.command()
def build(
    manifests: _Manifests = Path("../shared/manifests"),
    out: Annotated[Path | None, typer.Option("--out", help="Where to write (default: the splits in use).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file would differ.")] = False,
) -> None:
    """Build every split of every corpus; the same manifests give the same bytes.

    Frozen splits must not change once results exist: --check proves that they are what the manifests give.
    """
    from audiocl_bench import files
    from audiocl_bench import splits as frozen
    from audiocl_bench.errors import StreamError

    folder = out or files.splits_dir()
    if not manifests.is_dir():
        raise StreamError(f"--manifests {manifests} is no folder: give the folder of esc50.csv, us8k.csv, sc2.csv, ...")
    if check:
        differences = frozen.verify(manifests, folder)
        if differences:
            raise StreamError("the frozen splits differ from what the manifests give: " + "; ".join(differences))
        typer.echo(f"{folder}: every frozen split is exactly what the manifests give.")
        return
    for path in frozen.build(manifests, folder):
        typer.echo(f"{files.sha256_file(path)[:12]}  {path}")
