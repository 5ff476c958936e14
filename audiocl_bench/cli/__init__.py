"""The `audiocl` command: parse, call, print. Subcommands import what they need when they run, so --help is instant."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from audiocl_bench.cli.audit import audit
from audiocl_bench.cli.check import check
from audiocl_bench.cli.data import app as data_app
from audiocl_bench.cli.doctor import doctor
from audiocl_bench.cli.estimate import estimate
from audiocl_bench.cli.leaderboard import app as leaderboard_app
from audiocl_bench.cli.listing import app as list_app
from audiocl_bench.cli.new import new_benchmark, new_method
from audiocl_bench.cli.plot import app as plot_app
from audiocl_bench.cli.pretrain import pretrain
from audiocl_bench.cli.probe import probe
from audiocl_bench.cli.reproduce import reproduce
from audiocl_bench.cli.run import run
from audiocl_bench.cli.show import show
from audiocl_bench.cli.splits import app as splits_app
from audiocl_bench.cli.submit import submit, verify
from audiocl_bench.cli.table import table
from audiocl_bench.errors import AudioclError

BAD_INPUT, INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Ends bad input in one sentence and exit code 2, Ctrl-C in one sentence and 130; never in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AudioclError as error:
            _say(str(error))
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as interrupt:
            _say("interrupted; finished sessions are kept, run the same command again to continue.")
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    name="audiocl",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Class-incremental learning of audio with pretrained models.

A [bold]stream[/bold] of sessions goes in, a [bold]method[/bold] learns them one by one
without keeping old clips, every prediction is written down, and every number
is computed from what was written.

[bold]First steps[/bold]

  audiocl list benchmarks
      what can be run; also: list methods, backbones, corpora

  audiocl run -m pace -b all --data mini
      all six in miniature, on synthetic sound: no corpus needed

  audiocl doctor
      what this machine is ready for

  audiocl data get esc50 --data ~/audio
      a corpus; then:  audiocl run -m pace -b esc50 --data ~/audio

  audiocl run -m pace,ranpac -b all --data ~/audio --orders 0-4
      a sweep; run it again to continue where it stopped

  audiocl run -m pace -b my.toml --backbone weights/ --results here/
      your own sounds, your own encoder

  audiocl show pace-esc50
      accuracy matrix, scores, costs and provenance of a run

  audiocl table 2
      a table of the paper with our numbers beside it; also: plot, leaderboard

  audiocl new-method my-idea
      a package to begin with; then:  audiocl check my-idea
""",
)
app.command("run")(run)
app.command("show")(show)
app.command("table")(table)
app.command("reproduce")(reproduce)
app.command("estimate")(estimate)
app.command("probe")(probe)
app.command("audit")(audit)
app.command("check")(check)
app.command("new-method")(new_method)
app.command("new-benchmark")(new_benchmark)
app.command("doctor")(doctor)
app.command("pretrain")(pretrain)
app.command("submit")(submit)
app.command("verify")(verify)
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="data")
app.add_typer(plot_app, name="plot")
app.add_typer(splits_app, name="splits")
app.add_typer(leaderboard_app, name="leaderboard")


def _version(wanted: bool) -> None:
    if wanted:
        from audiocl_bench import __version__

        typer.echo(f"audiocl {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle the options that come before a subcommand."""


def main() -> None:
    """Run the command line."""
    app(prog_name="audiocl")


def _say(text: str) -> None:
    """Print every sentence on a line of its own, marked as ours; indented lines are lists that belong to one."""
    for line in text.splitlines():
        print(line if line.startswith(" ") else f"audiocl: {line}", file=sys.stderr)
