"""`audiocl pretrain`: train a small backbone from a recipe, in pieces, and write it as a folder of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from audiocl_bench.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from audiocl_bench.pretrain.pack import Pack
    from audiocl_bench.pretrain.recipe import Recipe

_TERMINATED = 143  # 128 + SIGTERM, as shells have it


def pretrain(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="Recipe, for example recipes/eat-mini.toml.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of checkpoint, loss curve and backbone (export/); by default runs/ and the recipe's name.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Steps of the whole run, instead of the recipe's.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="M", min=0.0, help="Stop after M minutes; run again to continue."),
    ] = None,
    until_seconds: Annotated[
        float | None, typer.Option("--until-seconds", metavar="S", min=0.0, help="The same in seconds.")
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", metavar="H", min=0.0, help="The same in hours.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Continue from the checkpoint, or start anew.")
    ] = True,
    export_only: Annotated[
        bool, typer.Option("--export-only", help="Do not train: write the checkpoint's student as a backbone.")
    ] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Do not train: fetch and pack the training clips.")
    ] = False,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", metavar="FILE", help="Measured accuracies for the model card (CSV, or JSON objects)."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="NAME",
            rich_help_panel=options.WHERE,
            help="Whisper encoder to distil, a name or a path, instead of the recipe's.",
        ),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(
            "--pack",
            metavar="DIR",
            rich_help_panel=options.WHERE,
            help="Folder of the packed clips (default: pretrain/ in the cache directory).",
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(
            "--precision",
            rich_help_panel=options.MACHINE,
            help="Instead of the recipe's; bfloat16 is quicker on a CPU that has avx512_bf16, and slow on others.",
        ),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
) -> None:
    """Pretrain a small EAT on freely licensed sound.

    Clips are fetched and packed first, unless they are there. A run stopped by
    --minutes, Ctrl-C or a crash continues when the command is given again, and
    on a CPU ends with the same bytes as an unbroken one. At the end the student
    is written to DIR/export, which --backbone takes.

    [bold]Examples[/bold]

      audiocl pretrain --config recipes/eat-mini.toml

      audiocl pretrain --config recipes/eat-mini.toml --out runs/eat-mini --minutes 50

      audiocl pretrain --config recipes/eat-mini.toml --out runs/eat-mini --export-only --probe probe.csv

      audiocl run -m ncm -b esc50 --backbone runs/eat-mini/export
    """
    from rich.console import Console

    from audiocl_bench import runner
    from audiocl_bench.pretrain import recipe
    from audiocl_bench.pretrain.trainer import Trainer
    from audiocl_bench.sweep import device_of

    asked = recipe.read(config, steps=steps, precision=precision)
    if teacher is not None:
        asked = replace(asked, audio={**asked.audio, "teacher": teacher})
    out = Path("runs") / config.stem if out is None else out
    console = Console(stderr=True)
    if export_only:
        _export(asked, _packed(asked, pack, workers=workers, quiet=quiet, build=False), out, probe)
        return
    chosen = device_of(device)
    clips = _packed(asked, pack, workers=workers, quiet=quiet, build=True)
    if prepare_only:
        console.print(f"{len(clips):,} clips are packed.", highlight=False)
        return
    with runner.threads(threads), _display(console, quiet=quiet) as watcher:
        trainer = Trainer(asked, clips, out, device=chosen, watcher=watcher)
        outcome = trainer.run(fresh=not resume, minutes=_minutes(minutes, until_seconds, hours))
    if outcome.end == "done":
        _export(asked, clips, out, probe)
        return
    left = f"step {outcome.step:,} of {outcome.steps:,} is kept in {out}: give the same command again to continue."
    console.print(left, soft_wrap=True, highlight=False, markup=False)
    if outcome.end == "interrupt":
        raise typer.Exit(130)
    if outcome.end == "terminate":
        raise typer.Exit(_TERMINATED)


def _minutes(minutes: float | None, seconds: float | None, hours: float | None) -> float | None:
    """Return the shortest of the given limits in minutes."""
    given = [limit * scale for limit, scale in ((minutes, 1.0), (seconds, 1 / 60), (hours, 60.0)) if limit is not None]
    return min(given) if given else None


def _packed(asked: Recipe, folder: Path | None, *, workers: int | None, quiet: bool, build: bool) -> Pack:
    """Return the packed clips of a recipe, made first where they are missing and `build` is set."""
    from audiocl_bench import files, processes
    from audiocl_bench.pretrain import pack

    audio = pack.AudioConfig.from_table(dict(asked.audio))
    if folder is None:
        folder = files.home() / "pretrain" / files.sha256_json(dict(asked.audio))[:16]
    if not build:
        return pack.Pack.open(folder)
    return pack.build(audio, folder, workers=workers or processes.cores(), progress=not quiet)


def _export(asked: Recipe, clips: Pack, out: Path, probe: Path | None) -> None:
    from rich.console import Console

    from audiocl_bench.pretrain.export import WEIGHTS, export

    done = export(asked, clips, out, out / "export", probe=probe)
    Console().print(
        f"{done.folder / WEIGHTS}: {done.parameters:,} parameters, {done.size:,} bytes",
        f"sha256 {done.sha256}",
        f"Use it: audiocl run -m ncm -b esc50 --backbone {done.folder}",
        sep="\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


class _Display:
    """Shows steps, speed and losses; meets `audiocl_bench.pretrain.trainer.Watcher`."""

    def __init__(self, console: Console, progress: Progress, *, lines: bool) -> None:
        self._console, self._progress, self._lines = console, progress, lines
        self._task = progress.add_task("steps", total=None, detail="")
        self._told = ""
        self._tenth = -1

    def started(self, step: int, steps: int) -> None:
        """Set the bar to the steps already done."""
        self._steps = steps
        self._progress.reset(self._task, total=steps, completed=step)
        if step:
            self.message(f"continuing after step {step:,} of {steps:,}")

    def stepped(self, step: int, clips_per_second: float, parts: dict[str, float]) -> None:
        """Advance the bar; without bars, print a line at every hundredth of the run."""
        if parts:
            self._told = ", ".join(
                f"{name.replace('_', ' ')} {value:.3f}"
                for name, value in parts.items()
                if name not in ("loss", "gradient") and math.isfinite(value)
            )
        detail = f"{clips_per_second:.0f} clips/s {self._told}"
        self._progress.update(self._task, completed=step, detail=detail)
        if self._lines and parts and 100 * step // self._steps > self._tenth:
            self._tenth = 100 * step // self._steps
            self.message(f"step {step:,} of {self._steps:,}: {detail}")

    def message(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _display(console: Console, *, quiet: bool) -> Iterator[_Display]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bars = console.is_interactive and not quiet
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not bars, speed_estimate_period=300) as progress:
        yield _Display(console, progress, lines=not bars and not quiet)
