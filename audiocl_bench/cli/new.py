"""`audiocl new-method` and `audiocl new-benchmark`: a folder to start from that already works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from audiocl_bench.scaffold import Written

_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Make the new folder in this one.")]


def new_method(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What --method will take: small letters, digits, single hyphens.")
    ],
    out: _Out = Path(),
) -> None:
    """Write a pip-installable package with a method that works, its test and a README into the new folder NAME.

    The method is a nearest class mean in closed form: replace its equations
    by yours. Nothing that exists is overwritten.

    [bold]Example[/bold]

      audiocl new-method my-idea
    """
    from audiocl_bench import scaffold

    written = scaffold.new_method(name, out)
    _tell(written, f"the method '{name}'")
    _next(
        written,
        ('pip install -e ".[test]"', f"makes '{name}' known to audiocl"),
        (f"audiocl check {name}", "does it keep the promises of the interface?"),
        ("pytest", "the same, and its equations by hand"),
        (f"audiocl run -m {name},ncm -b us8k --data mini --backbone eat-mini", "a first run"),
    )


def new_benchmark(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What it is called: small letters, digits, single hyphens.")
    ],
    out: _Out = Path(),
) -> None:
    """Write a benchmark in TOML with sample sounds that it runs on, and a README, into the new folder NAME.

    Put your own sounds in place of the samples and change what the TOML file
    says; every field is explained there. Nothing that exists is overwritten.

    [bold]Example[/bold]

      audiocl new-benchmark birds
    """
    from audiocl_bench import scaffold

    written = scaffold.new_benchmark(name, out)
    _tell(written, f"the benchmark '{name}'")
    _next(
        written,
        (f"audiocl run -m ncm -b {name}.toml --backbone eat-mini", "runs on the samples"),
    )
    typer.echo(f"\nThen put your own sounds into audio/ and change what {name}.toml says of them.")


def _tell(written: Written, what: str) -> None:
    typer.echo(f"{written.folder} holds {what}:")
    for path in written.paths:
        typer.echo(f"  {path}")


def _next(written: Written, *steps: tuple[str, str]) -> None:
    import shlex

    first = f"cd {shlex.quote(str(written.folder))}"
    width = max(len(first), *(len(command) for command, _ in steps))
    typer.echo("\nNext:")
    for command, why in ((first, ""), *steps):
        typer.echo(f"  {command:<{width}}  {why}".rstrip())
