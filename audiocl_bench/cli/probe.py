"""`audiocl probe`: what a frozen backbone knows, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audiocl_bench.cli import options

if TYPE_CHECKING:
    from rich.progress import Progress

Update = Callable[[str, int, int], None]


def probe(
    backbone: options.Backbone,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            "-s",
            metavar="NAME",
            help="Benchmark or your own .toml file. Repeatable (default: four example streams of a clone).",
        ),
    ] = None,
    protocol: options.Protocol = None,
    references: Annotated[
        bool, typer.Option("--references/--no-references", help="Probe log-mel statistics and random weights too.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write all numbers there: .json or .parquet.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", rich_help_panel=options.WHERE, help="Folder of the corpora."),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> None:
    """Judge a backbone: class means and a linear probe on every layer.

    Every clip passes the frozen network once. On each layer's class token and
    mean (and deviation) over the audio tokens, class means and a ridge classifier
    are fitted to the training clips of a stream and tested on its test clips, all
    classes at once. Two references stand beside them: statistics of the log-mel,
    and the same network with random weights.

    [bold]Examples[/bold]

      audiocl probe --backbone weights/

      audiocl probe --backbone eat-base --stream esc50 --protocol grouped

      audiocl probe --backbone eat-mini --stream my.toml --out probe.parquet
    """
    import time

    from rich.console import Console
    from rich.text import Text

    from audiocl_bench import backbones, request, runner, sweep
    from audiocl_bench import probe as probes
    from audiocl_bench.report.tables import duration

    if out is not None:
        probes.check_out(out)
    where = sweep.device_of(device)
    opened = probes.open_streams(
        request.names(streams, "--stream") if streams else probes.example_streams(), data, protocol
    )
    networks = {
        frames: backbones.load(backbone, frames=frames) for frames in {item.benchmark.frames for item in opened}
    }
    network = networks[opened[0].benchmark.frames]
    console, started, found = Console(), time.monotonic(), []
    stores = probes.prepare(opened, networks, workers=workers, progress=not quiet)
    with runner.threads(threads), _bar(quiet=quiet) as (progress, update):
        origin = probes.provenance(network, where, references=references)
        told = probes.probe_streams(opened, stores, networks, references=references, device=where, tell=update)
        for probed in told:
            found.append(probed)
            with _paused(progress):
                console.print(probes.layer_table(probed), Text(), sep="\n")
            if out is not None:  # after every stream: what is done is not lost with a later one
                probes.write(out, found, origin)
    if len(found) > 1:
        console.print(probes.summary_table(found, network.name))
    seconds = duration(time.monotonic() - started)
    weights = f"{origin['parameters'] / 1e6:.3g} M parameters, weights {network.weights_hash[:12]}"
    console.print(Text(f"{probes.LEGEND}\n{network.name}: {weights}; {seconds}.", style="dim"))
    if out is not None:
        rows = len(probes.table_rows(found, network.name, network.weights_hash))
        typer.echo(f"{out}: {rows} numbers of {len(found)} {'stream' if len(found) == 1 else 'streams'}.")


@contextmanager
def _bar(*, quiet: bool) -> Iterator[tuple[Progress, Update]]:
    """Yield a progress display, alive on an interactive terminal only, and a function that updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_interactive) as progress:
        task = progress.add_task("", total=None, visible=False)

        def update(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total, visible=True)

        yield progress, update


@contextmanager
def _paused(progress: Progress) -> Iterator[None]:
    """Take the display away while something is printed."""
    if not progress.live.is_started:
        yield
        return
    progress.stop()
    yield
    progress.start()
