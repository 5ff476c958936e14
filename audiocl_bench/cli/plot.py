"""`audiocl plot`: figures of stored runs, each written as PNG, SVG and PDF with the table that it drew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from audiocl_bench.cli import options

if TYPE_CHECKING:
    from audiocl_bench.report.figures import Chosen, Drawing

app = typer.Typer(
    no_args_is_help=True,
    help="""Draw figures of stored runs: PNG, SVG and PDF, with the drawn table.

One figure shows one benchmark, protocol and backbone; runs that differ in
settings, data or weights are never averaged. Colours are safe for
colour-blind readers, and nothing is told by colour alone.

[bold]Examples[/bold]

  audiocl plot curves -b esc50 -m pace,ranpac,joint

  audiocl plot matrix --paper only

  audiocl plot cost -b esc50 --results results/ --out paper/cost
""",
)

_FILTERS, _PICTURE = "Which runs", "Picture"

Results = Annotated[
    list[str] | None,
    typer.Option(
        "--results",
        metavar="DIR",
        rich_help_panel=_FILTERS,
        help="Directory of results, or a folder of such directories. Repeatable (default: results/ in the cache).",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method", "-m", metavar="NAME", rich_help_panel=_FILTERS, help="METHOD or METHOD@PRESET, in this order."
    ),
]
Benches = Annotated[
    list[str] | None,
    typer.Option("--bench", "--benchmark", "-b", metavar="NAME", rich_help_panel=_FILTERS, help="Benchmark."),
]
Protocols = Annotated[
    list[str] | None,
    typer.Option("--protocol", metavar="NAME", rich_help_panel=_FILTERS, help="paper, grouped or own."),
]
Backbones = Annotated[
    list[str] | None,
    typer.Option("--backbone", metavar="NAME", rich_help_panel=_FILTERS, help="Pretrained network."),
]
Orders = Annotated[
    str | None,
    typer.Option("--orders", metavar="LIST", rich_help_panel=_FILTERS, help="Class orders: 0 or 0-4 (default: all)."),
]
Seeds = Annotated[
    str | None,
    typer.Option("--seeds", metavar="LIST", rich_help_panel=_FILTERS, help="Run seeds (default: all)."),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="KEY=VALUE",
        rich_help_panel=_FILTERS,
        help="Only runs with this setting, such as msa=true; methods without it stay. Repeatable.",
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        metavar="STEM",
        rich_help_panel=_PICTURE,
        help="Files without their suffix, or a folder, which gets a name for the figure.",
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", metavar="NAME", rich_help_panel=_PICTURE, help="png, svg or pdf (default: all three)."),
]
Width = Annotated[
    str | None,
    typer.Option(
        "--width", metavar="SIZE", rich_help_panel=_PICTURE, help="single (3.3 in), double (7 in), or inches."
    ),
]
Paper = Annotated[
    Literal["auto", "only", "no"],
    typer.Option(
        "--paper",
        rich_help_panel=_PICTURE,
        help="The paper's numbers: beside comparable runs (auto), alone (only), or not.",
    ),
]


def _plain(kind: str, told: str) -> None:
    """Add the command of a figure that needs nothing but runs."""

    def command(
        results: Results = None,
        method: Methods = None,
        bench: Benches = None,
        protocol: Protocols = None,
        backbone: Backbones = None,
        orders: Orders = None,
        seeds: Seeds = None,
        where: Where = None,
        out: Out = "figures/",
        format_: Formats = None,
        width: Width = None,
    ) -> None:
        from audiocl_bench.report import figures

        chosen = _chosen(results, method, bench, protocol, backbone, orders, seeds, where)
        draw: dict[str, Callable[[], Drawing]] = {
            "curves": lambda: figures.curves(chosen.runs, chosen.sessions(), width=width),
            "bars": lambda: figures.bars(chosen.runs, chosen.predictions(), width=width),
            "drift": lambda: figures.drift(chosen.runs, width=width),
        }
        _write(draw[kind](), out, format_)

    command.__doc__ = told
    app.command(kind)(command)


_plain(
    "curves",
    """Accuracy over the sessions, one line per method, with 95 % intervals.

A value is the mean accuracy on the sessions learned so far.

[bold]Example[/bold]

  audiocl plot curves -b esc50 -m pace,ranpac,joint
""",
)
_plain(
    "bars",
    """Final accuracy on the first session, on later ones and on all (Fig. 3).

All three are taken after the last session.

[bold]Example[/bold]

  audiocl plot bars -b us8k -m pace@no-fsa,pace@naive-fsa,pace
""",
)
_plain(
    "drift",
    """Final accuracy as stored, and with statistics recomputed at the end.

Needs runs made with `audiocl run ... --drift`. A diagnostic, not a ranking.

[bold]Example[/bold]

  audiocl plot drift -b timit2
""",
)


def _sweep(kind: str, told: str) -> None:
    """Add the command of a figure that the paper's numbers may stand in."""

    def command(
        results: Results = None,
        method: Methods = None,
        bench: Benches = None,
        protocol: Protocols = None,
        backbone: Backbones = None,
        orders: Orders = None,
        seeds: Seeds = None,
        where: Where = None,
        paper: Paper = "auto",
        out: Out = "figures/",
        format_: Formats = None,
        width: Width = None,
    ) -> None:
        from audiocl_bench.report import figures

        draw: Callable[..., Drawing] = {"cka": figures.cka, "freeze": figures.freeze, "adapted": figures.adapted}[kind]
        table = {"cka": figures.paper.cka, "freeze": figures.paper.freeze, "adapted": figures.paper.adapted}[kind]()
        if paper == "only":
            drawing = draw(None, paper=_of_benchmarks(table, _names(bench, "--bench")), width=width)
        else:
            chosen = _chosen(results, method, bench, protocol, backbone, orders, seeds, where)
            beside = _beside(chosen.runs, table) if paper == "auto" else None
            drawing = draw(chosen.runs, chosen.sessions(), paper=beside, width=width)
        _write(drawing, out, format_)

    command.__doc__ = told
    app.command(kind)(command)


_sweep(
    "cka",
    """CKA of each block with the pretrained network, from PACE's layer probe (Fig. 6).

One line per benchmark.

[bold]Example[/bold]

  audiocl plot cka -m pace
""",
)
_sweep(
    "freeze",
    """Final accuracy against frozen first blocks (Fig. 6).

Needs runs that differ in `freeze_blocks` only.

[bold]Example[/bold]

  audiocl run -m pace@naive-fsa -b esc50 --set freeze_blocks=1

  audiocl plot freeze -m pace@naive-fsa
""",
)
_sweep(
    "adapted",
    """Final accuracy against the number of adapted sessions (Fig. 7).

Needs runs that differ in `adapted_sessions` only.

[bold]Example[/bold]

  audiocl run -m pace -b vocalset --set adapted_sessions=3

  audiocl plot adapted -m pace -b vocalset
""",
)


@app.command("matrix")
def matrix(
    results: Results = None,
    method: Methods = None,
    bench: Benches = None,
    protocol: Protocols = None,
    backbone: Backbones = None,
    orders: Orders = None,
    seeds: Seeds = None,
    where: Where = None,
    paper: Annotated[
        Literal["only", "no"],
        typer.Option(
            "--paper",
            rich_help_panel=_PICTURE,
            help="'only' draws the paper's Figure 9; -m chooses pace, pace-no-msa, pace-no-projection.",
        ),
    ] = "no",
    out: Out = "figures/",
    format_: Formats = None,
    width: Width = None,
) -> None:
    """Accuracy matrices as heat maps, up to three methods side by side (Fig. 9).

    Row: sessions learned; column: session tested. Several class orders are
    averaged; --orders 0 shows one run.

    [bold]Examples[/bold]

      audiocl plot matrix -b vocalset -m pace,pace@no-msa --orders 0

      audiocl plot matrix --paper only
    """
    from audiocl_bench.report import figures

    if paper == "only":
        chosen_names = _names(method, "--method")
        drawing = figures.paper_matrix(chosen_names, width=width) if chosen_names else figures.paper_matrix(width=width)
    else:
        chosen = _chosen(results, method, bench, protocol, backbone, orders, seeds, where)
        drawing = figures.matrix(chosen.runs, chosen.predictions(), width=width)
    _write(drawing, out, format_)


@app.command("cost")
def cost(
    results: Results = None,
    method: Methods = None,
    bench: Benches = None,
    protocol: Protocols = None,
    backbone: Backbones = None,
    orders: Orders = None,
    seeds: Seeds = None,
    where: Where = None,
    costs: Annotated[
        list[str] | None,
        typer.Option(
            "--cost", metavar="NAME", rich_help_panel=_PICTURE, help="seconds, bytes or passes (default: all three)."
        ),
    ] = None,
    out: Out = "figures/",
    format_: Formats = None,
    width: Width = None,
) -> None:
    """Final accuracy against cost: training time, kept bytes, encoder passes.

    The axes of costs are logarithmic.

    [bold]Example[/bold]

      audiocl plot cost -b esc50 --cost passes --width single
    """
    from audiocl_bench.report import figures

    wanted = _names(costs, "--cost") or tuple(figures.COSTS)
    chosen = _chosen(results, method, bench, protocol, backbone, orders, seeds, where)
    _write(figures.cost(chosen.runs, costs=wanted, width=width), out, format_)


@app.command("features")
def features(
    method: options.Method,
    bench: options.Bench,
    backbone: options.Backbone = "eat-base",
    protocol: options.Protocol = None,
    order: Annotated[int, typer.Option("--order", metavar="N", min=0, help="Class order.")] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the run, the clips and t-SNE.")] = 0,
    data: options.Data = None,
    set_: options.Settings = None,
    classes: Annotated[
        int, typer.Option("--classes", metavar="N", help="Classes shown, evenly over their arrival (2-10).")
    ] = 8,
    clips: Annotated[int, typer.Option("--clips", metavar="N", help="Most test clips of a class (2-100).")] = 40,
    device: options.Device = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    out: Out = "figures/",
    format_: Formats = None,
    width: Width = None,
) -> None:
    """PCA and t-SNE of features before and after adaptation (Fig. 1, 3d).

    Trains the method on the whole stream, as `audiocl audit` does; nothing
    is stored but the figure.

    [bold]Example[/bold]

      audiocl plot features -m pace -b us8k --data mini --backbone eat-mini
    """
    from audiocl_bench.cli.sweep import Sweep, Terminal
    from audiocl_bench.report.figures import features as drawn
    from audiocl_bench.report.figures.style import width_of
    from audiocl_bench.sweep import learn_one

    # What can be wrong is found before the training.
    drawn.check_sizes(classes, clips)
    width_of(width, "double")
    target = _target(out, format_)
    plan, material, learned = learn_one(
        Sweep(
            methods=(method,),
            benchmarks=(bench,),
            backbone=backbone,
            protocol=protocol,
            orders=(order,),
            seeds=(seed,),
            data=data,
            settings=tuple(set_ or ()),
            audit=True,
            device=device,
            threads=threads,
            quiet=quiet,
        ),
        Terminal(quiet=quiet),
    )
    samples = drawn.collect(plan, material, learned, classes=classes, per_class=clips, seed=seed)
    _save(drawn.features(samples, seed=seed, width=width), *target)


def _chosen(
    results: list[str] | None,
    method: list[str] | None,
    bench: list[str] | None,
    protocol: list[str] | None,
    backbone: list[str] | None,
    orders: str | None,
    seeds: str | None,
    where: list[str] | None,
) -> Chosen:
    """Read the results directories and keep the runs asked for."""
    from audiocl_bench.report.figures import select
    from audiocl_bench.request import numbers
    from audiocl_bench.results import result_dirs, results_at

    roots = [results_at(root) for root in results] if results else [results_at(None)]
    directories = [found for root in roots for found in (result_dirs(root) or (root,))]
    return select(
        directories,
        methods=_names(method, "--method"),
        benchmarks=_names(bench, "--bench"),
        protocols=_names(protocol, "--protocol"),
        backbones=_names(backbone, "--backbone"),
        orders=() if orders is None else numbers(orders, "--orders"),
        seeds=() if seeds is None else numbers(seeds, "--seeds"),
        where=_settings(where or ()),
    )


def _settings(where: Sequence[str]) -> dict[str, str]:
    """Read `--where key=value` items."""
    from audiocl_bench.errors import ConfigError

    found = {}
    for item in where:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--where '{item}' must look like key=value, for example --where msa=true.")
        found[key.strip()] = value.strip()
    return found


def _names(items: list[str] | None, option: str) -> tuple[str, ...]:
    from audiocl_bench.request import names

    return names(items, option) if items else ()


def _beside(runs: Any, table: Any) -> Any:
    """Return the paper's rows for the benchmarks of these runs, or None where they must not or cannot stand beside."""
    if not runs["comparable"].all() or set(runs["protocol"]) != {"paper"}:
        return None
    rows = table[table["benchmark"].isin(set(runs["benchmark"]))]
    return rows if len(rows) else None


def _of_benchmarks(table: Any, wanted: Sequence[str]) -> Any:
    from audiocl_bench.errors import unknown_name

    for name in wanted:
        if name not in set(table["benchmark"]):
            raise unknown_name("benchmark in this figure of the paper", name, set(table["benchmark"]))
    return table[table["benchmark"].isin(list(wanted))] if wanted else table


def _target(out: str, formats: list[str] | None) -> tuple[Path | None, Path, tuple[str, ...]]:
    """Read --out and --format: (stem or None for a name of the figure's own, folder, formats)."""
    from audiocl_bench.errors import unknown_name
    from audiocl_bench.report.figures import FORMATS

    wanted = _names(formats, "--format")
    for name in wanted:
        if name not in FORMATS:
            raise unknown_name("format of figures", name, FORMATS)
    path = Path(out)
    if out.endswith("/") or path.is_dir():
        return None, path, wanted or FORMATS
    suffix = path.suffix.removeprefix(".")
    if suffix in FORMATS:  # `--out fig.pdf` asks for that file
        return path.with_suffix(""), path.parent, wanted or (suffix,)
    return path, path.parent, wanted or FORMATS


def _write(drawing: Drawing, out: str, formats: list[str] | None) -> None:
    _save(drawing, *_target(out, formats))


def _save(drawing: Drawing, stem: Path | None, folder: Path, formats: Sequence[str]) -> None:
    """Write the figure, say what it shows and where it is."""
    from audiocl_bench.report.listen import safe_names

    written = drawing.save(stem or folder / safe_names([drawing.stem])[drawing.stem], formats)
    typer.echo(drawing.alt)
    for path in written:
        typer.echo(str(path))
