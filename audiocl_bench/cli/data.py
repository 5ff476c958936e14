"""`audiocl data`: get corpora, take over copies, see what is here, check it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from audiocl_bench.acquire.corpora import Placed, Status

app = typer.Typer(
    no_args_is_help=True,
    help="""Get the corpora, add copies you have, see what is here, check it.

Corpora lie side by side in one folder: --data DIR, by default data/ in the
cache directory, where `audiocl run` looks too. A corpus takes its place there
only when all its clips and labels are those of the frozen splits.
""",
)

_Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder of the corpora (default: data/ in the cache directory)."),
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
_CLIPS = ("reading", "decoding")  # stages that count clips; the others count bytes


@app.command()
def status(data: _Data = None) -> None:
    """Show each corpus: whether it is complete, its size, licence and split hash.

    The split hash stands for the frozen splits of the corpus; equal hashes
    mean equal training and test clips.
    """
    from rich.console import Console

    from audiocl_bench.acquire import corpora
    from audiocl_bench.report.tables import listing, megabytes

    rows = corpora.status(data)
    cells = [
        (row.corpus, row.complete, f"{row.expected:,}", _size(row, megabytes), row.licence, row.split_hash)
        for row in rows
    ]
    columns = ("corpus", "complete?", "clips", "size", "licence", "split hash")
    console = Console(highlight=False)
    console.print(listing(cells, columns, "Corpora"))
    console.print()
    for row in rows:
        _print_place(row, corpora.data_option(data))


def _size(row: Status, words: Callable[[float | None], str]) -> str:
    return words(row.size / 1e6) if row.where is not None else words(None)


def _print_place(row: Status, option: str) -> None:
    """Print where a corpus is, what is wrong with it, and what to type for it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    if row.where is not None:
        linked = f" -> {row.where.readlink()}" if row.where.is_symlink() else ""
        grid.add_row(row.corpus, Text(f"{row.where}{linked}"))
    if row.state == "different":
        told = row.problems[0] + (f" (and {len(row.problems) - 1:,} more)" if len(row.problems) > 1 else "")
        grid.add_row("" if row.where else row.corpus, Text(told))
    if row.where is None:
        grid.add_row(row.corpus, Text(row.command))
    elif row.state != "complete":
        grid.add_row("", Text(f"move it away, then {row.command}; audiocl data verify {row.corpus}{option} lists all"))
    Console(highlight=False).print(grid)


@app.command()
def get(
    names: Annotated[
        list[str], typer.Argument(metavar="CORPUS...", help="esc50, us8k, sc2, vocalset, or all of them: all.")
    ],
    data: _Data = None,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Read from the Hugging Face Hub instead (esc50, us8k).")
    ] = False,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the archive in DIR/.downloads afterwards.")
    ] = False,
    quiet: _Quiet = False,
) -> None:
    """Download corpora from their official addresses, check and unpack them.

    A download that was interrupted goes on where it stopped. Size and checksum
    are compared where the publisher states them, and all clips and labels with
    the frozen splits. A corpus that is complete is left alone.

    [bold]Examples[/bold]

      audiocl data get esc50

      audiocl data get all --data ~/audio

      audiocl data get us8k --mirror
    """
    from audiocl_bench.acquire import corpora
    from audiocl_bench.errors import AudioclError

    failures = []
    for name in corpora.names_of(names):
        try:
            with bars(name, quiet=quiet) as progress:
                placed = corpora.get(name, data, mirror=mirror, progress=progress, keep_archive=keep_archive)
        except AudioclError as error:
            failures.append(str(error))
        else:
            _say_placed(placed)
    if failures:
        raise AudioclError("\n".join(failures))


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="CORPUS", help="esc50, us8k, sc2, timit or vocalset.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder or archive (zip, tar) of your copy.")],
    data: _Data = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy a folder instead of linking to it.")] = False,
    quiet: _Quiet = False,
) -> None:
    """Add a copy of a corpus that you have; the way to use TIMIT.

    The copy is compared with the frozen splits first. A folder stays where it
    is and is linked to; an archive is unpacked. Official layouts are found
    below PATH too, TIMIT in any letter case, as NIST SPHERE or RIFF.

    [bold]Examples[/bold]

      audiocl data add timit /corpora/LDC93S1

      audiocl data add us8k ~/Downloads/UrbanSound8K.tar.gz
    """
    from audiocl_bench.acquire import corpora

    with bars(name, quiet=quiet) as progress:
        placed = corpora.add(name, path, data, copy=copy, progress=progress)
    _say_placed(placed)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CORPUS...", help="Corpora to check (default: all that are here).")
    ] = None,
    data: _Data = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every file from beginning to end; takes minutes.")
    ] = False,
    quiet: _Quiet = False,
) -> None:
    """Check copies: clips and labels, empty files, with --decode all audio.

    Every bad file is reported, not only the first. Exit code 2 if there is one.
    """
    from audiocl_bench.acquire import corpora
    from audiocl_bench.errors import CorpusError

    with bars("verify", quiet=quiet) as progress:
        outcomes = corpora.verify(names or "all", data, decode=decode, progress=progress)
    for outcome in outcomes:
        if not outcome.problems:
            checked = "names, labels and audio" if decode else "names and labels"
            typer.echo(f"{outcome.corpus}: {checked} of {outcome.clips:,} clips are right ({outcome.where})")
    if bad := [message for outcome in outcomes if (message := corpora.problems_message(outcome, data))]:
        raise CorpusError("\n".join(bad))


@app.command()
def listen(
    bench: Annotated[str, typer.Argument(metavar="BENCH", help="Benchmark, your own .toml file, or mini-NAME.")],
    data: _Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write (default: listen-BENCH).")
    ] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", metavar="NAME", help="paper or grouped.")] = None,
    order: Annotated[int, typer.Option("--order", metavar="N", min=0, help="Class order.")] = 0,
    per_class: Annotated[int, typer.Option("--per-class", metavar="N", help="Most clips per class.")] = 2,
    classes: Annotated[int, typer.Option("--classes", metavar="N", help="Most classes.")] = 20,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the draw of clips.")] = 0,
) -> None:
    """Write a few example clips and a sheet of their spectrograms (PNG).

    Classes are taken evenly from the stream's first session to its last.

    [bold]Examples[/bold]

      audiocl data listen esc50 --data ~/audio

      audiocl data listen mini-vocalset
    """
    import pandas as pd

    from audiocl_bench import benchmarks
    from audiocl_bench.report.listen import listen as write

    benchmark = benchmarks.get(bench)
    chosen = protocol or benchmark.protocols[0]
    stream, clips = benchmark.open(data, chosen, order)
    labels = stream.labels
    table = pd.DataFrame(
        {
            "clip_id": clips["clip_id"],
            "path": clips["path"],
            "label": [stream.classes[label] for label in labels],
            "part": ["test" if test else "train" for test in stream.is_test],
            "session": stream.session_of_class[labels],
        }
    ).iloc[labels.argsort(kind="stable")]
    kind = "mini (synthetic, not comparable), " if benchmark.mini else ""
    heard = write(
        table,
        out or Path(f"listen-{benchmark.name}"),
        title=f"{benchmark.title}: {kind}{chosen} split, order {order}",
        per_class=per_class,
        classes=classes,
        seed=seed,
        seconds=benchmark.frames / 100,
    )
    typer.echo(f"{len(heard.clips)} clips beside {heard.sheet}")


@app.command()
def features(
    clear: Annotated[bool, typer.Option("--clear", help="Delete them; later runs compute them again.")] = False,
) -> None:
    """Show the kept features of pretrained networks, and the space they take.

    Every clip goes through a pretrained network once; all methods, orders and
    seeds read its features from features/ in the cache directory.
    """
    from rich.console import Console

    from audiocl_bench import bank
    from audiocl_bench.report.tables import listing, megabytes

    if clear:
        typer.echo(f"{megabytes(bank.clear() / 1e6)} cleared in {bank.folder()}")
        return
    rows = [
        (
            entry.path.name,
            f"{entry.clips:,}",
            ",".join(map(str, entry.layers)),
            "+".join(entry.statistics),
            f"{100 * entry.complete:.0f} %",
            megabytes(entry.bytes / 1e6),
        )
        for entry in bank.listing()
    ]
    console = Console(highlight=False)
    console.print(listing(rows, ("features", "clips", "layers", "pool", "computed", "size"), "Kept features"))
    console.print(f"in {bank.folder()}", soft_wrap=True)


def _say_placed(placed: Placed) -> None:
    typer.echo(f"{placed.corpus}: {placed.how}, {placed.clips:,} clips complete in {placed.where}")


@contextmanager
def bars(name: str, *, quiet: bool = False) -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a progress function (see `acquire.corpora.Progress`): bars on a terminal, a line per stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    interactive = console.is_interactive and not quiet
    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[told]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not interactive) as display:

        def progress(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                for earlier in tasks.values():
                    display.update(earlier, visible=False)
                tasks[stage] = display.add_task(f"{stage} {name}", total=total, told="")
                if not interactive and not quiet:
                    of = f" ({_amount(stage, total)})" if total is not None else ""
                    console.print(f"{stage} {name}{of}", highlight=False, soft_wrap=True)
            if interactive:
                task = display.tasks[display.task_ids.index(tasks[stage])]
                display.update(task.id, completed=done, total=total, told=_told(stage, done, total, task.speed))

        yield progress


def _told(stage: str, done: int, total: int | None, speed: float | None) -> str:
    """Say how far a stage is: "3.2 MB of 24.0 MB, 1.1 MB/s"."""
    of = f" of {_amount(stage, total)}" if total is not None else ""
    at = f", {_amount(stage, int(speed))}/s" if speed else ""
    return f"{done:,}{of}{at}" if of and stage in _CLIPS else f"{_amount(stage, done)}{of}{at}"


def _amount(stage: str, count: int) -> str:
    from audiocl_bench.acquire.download import amount

    return f"{count:,} clips" if stage in _CLIPS else amount(count)
