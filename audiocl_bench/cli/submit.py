"""`audiocl submit` and `audiocl verify`: runs into one file for others, and the check of what others sent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence, Sized

    from audiocl_bench.results import ResultsDir
    from audiocl_bench.submission.collection import Report
    from audiocl_bench.submission.difference import Change

_SHOWN_PROBLEMS = 40


def submit(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run ids or unambiguous parts, or METHOD, METHOD@PRESET: all its runs."),
    ],
    results: Annotated[
        str | None,
        typer.Option("--results", metavar="DIR", help="Directory of results (default: results/ in the cache)."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The pack to write.")] = Path("submission.zip"),
    description: Annotated[
        str, typer.Option("--description", metavar="TEXT", help="What this is, in a sentence or two.")
    ] = "",
    contact: Annotated[str, typer.Option("--contact", metavar="TEXT", help="Whom to ask; it will be public.")] = "",
    url: Annotated[str, typer.Option("--url", metavar="URL", help="Paper or code.")] = "",
) -> None:
    """Pack runs for others: verified first, then Parquet files as they are and a manifest.

    The same runs give the same bytes. You give them under CC0 1.0
    (results/LICENSE). Exit code 2 if something is wrong with a run: then
    nothing is written.

    [bold]Examples[/bold]

      audiocl submit diagonal --results audiocl-results

      audiocl submit pace@no-msa ranpac-esc50-paper-eat_base-o0 --out ablation.zip
    """
    from audiocl_bench.acquire.download import amount
    from audiocl_bench.results import results_at
    from audiocl_bench.submission import collection, pack

    stored = results_at(results)
    chosen = pack.choose(stored, runs)
    with stored.on_disk(chosen) as here:
        report = collection.verify_collection(here, collection.published(), only=chosen)
        _stop_if_refused(report.problems, "nothing was packed")
        pack.write(here, chosen, out, description=description, contact=contact, url=url)
    for note in report.notes:
        _print(f"note: {note}")
    for place in _paths(report):
        _print(f"note: the runs tell the path their weights were read from: {place}")
    _print(
        f"{out}: {_count(chosen)}, {amount(out.stat().st_size)}, all checks passed. Look again: audiocl verify {out}"
    )


def verify(
    what: Annotated[str, typer.Argument(metavar="PACK|DIR", help="A pack, a collection, or a folder of collections.")],
    add: Annotated[
        str | None, typer.Option("--add", metavar="DIR", help="Unpack a pack that passes into results/NAME.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="DIR", help="Published collections (default: results/ of this clone)."),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(
            "--before", metavar="DIR", help="An earlier results/: verify only what changed since, and show it."
        ),
    ] = None,
) -> None:
    """Check results of others, or your own: recompute every metric, compare every hash, refuse what is wrong.

    Nothing in a pack is executed. Checked are sizes, hashes and schema, run
    ids, settings, splits and clip lists, each test clip once per session,
    labels, audits, times, duplicates, and which orders are missing. Exit code
    0 if all is right, 2 if not, with a sentence for each thing that is wrong.

    [bold]Examples[/bold]

      audiocl verify submission.zip

      audiocl verify submission.zip --add results/diagonal

      audiocl verify results/examples
    """
    import pandas as pd

    from audiocl_bench.errors import ResultsError
    from audiocl_bench.places import Folder
    from audiocl_bench.results import results_at
    from audiocl_bench.submission import collection
    from audiocl_bench.submission.difference import all_runs, difference

    given = results_at(what)
    if before is not None:
        _verify_change(before, given.path)
        return
    folder = not isinstance(given.place, Folder) or given.path.is_dir()
    if add is not None and folder:
        raise ResultsError(
            f"--add takes a pack, and {given.name} is a directory: pack its runs with `audiocl submit` first."
        )
    if folder:
        _verify_folder(given, against)
        return
    target = None if add is None else results_at(add)
    if target is None or against or not isinstance(target.place, Folder) or not target.path.parent.is_dir():
        known = collection.published(against)
    else:
        known = collection.published(target.path.parent)
    if target is None:
        report = collection.verify_pack(given.path, known)
    else:
        others = [one for one in known if one.place.identity != target.place.identity]
        report = collection.add(given.path, target, others)
    _stop_if_refused(report.problems, f"{given.name} is refused")
    _print_report(report)
    old = all_runs(known)
    old = old[~old["run_id"].isin(report.runs["run_id"])]
    _print_changes(
        difference(old, pd.concat([old, report.runs], ignore_index=True)), "What it adds to what is published"
    )
    if target is not None:
        _print(f"added to {target.name}, which now has {_count(target.run_ids())}.")


def _verify_folder(what: ResultsDir, against: str | None) -> None:
    """Verify a collection, or every collection of a folder against the others."""
    from audiocl_bench.errors import ResultsError
    from audiocl_bench.results import result_dirs
    from audiocl_bench.submission import collection

    found = result_dirs(what)
    if not found:
        raise ResultsError(f"{what.name} holds no runs: point at a results directory, a folder of them, or a pack.")
    if found[0].place.identity == what.place.identity:
        reports = [collection.verify_collection(what, collection.published(against))]
    else:
        known = collection.published(against) if against else ()
        reports = collection.verify_collections(found, known)
    _print_reports(reports, what.name)


def _verify_change(before: Path, after: Path) -> None:
    """Verify the collections that differ from those below `before`, and print what changes in the numbers."""
    from audiocl_bench.errors import ResultsError
    from audiocl_bench.results import result_dirs
    from audiocl_bench.submission import collection
    from audiocl_bench.submission.difference import all_runs, difference

    for folder in (before, after):
        if not folder.is_dir():
            raise ResultsError(f"{folder} is no directory: give the results/ folder of before and that of now.")
    changed = collection.changed_collections(before, after)
    old, new = result_dirs(before), result_dirs(after)
    gone = sorted({one.path.name for one in old} - {one.path.name for one in new})
    problems = collection.strangers(after)
    for name in gone:
        _print(f"note: the collection {name} is removed.")
    kept = [one for one in new if one.path not in changed]
    _print_reports(collection.verify_collections(changed, kept), str(after), problems)
    if changed or gone:
        _print_changes(difference(all_runs(old), all_runs(new)), "What changes")
    else:
        _print("no collection is added, changed or removed.")


def _print_reports(reports: Sequence[Report], what: str, problems: Sequence[str] = ()) -> None:
    """Print the reports that are all right, then stop with the problems of the others, if there are any."""
    for report in reports:
        if report.passed:
            _print_report(report)
    _stop_if_refused([*problems, *(text for report in reports for text in report.problems)], f"{what} is refused")


def _print_report(report: Report) -> None:
    """Print what was checked of results that are all right, and the notes."""
    scores = f"every score was recomputed from {report.predictions:,} predictions"
    _print(f"{report.source}: {_count(report.runs)}, all right; {scores}.")
    for name, text in report.texts.items():
        if text:
            _print(f"{name}: {_one_line(text)}")
    for note in report.notes:
        _print(f"note: {note}")


def _print_changes(changes: Sequence[Change], title: str) -> None:
    from rich.console import Console

    from audiocl_bench.report import tables
    from audiocl_bench.submission import difference

    heading = f"{title} (final accuracy, mean over orders and seeds)"
    Console().print(tables.listing(difference.table(changes), difference.COLUMNS, heading))


def _stop_if_refused(problems: Sequence[str], told: str) -> None:
    from audiocl_bench.errors import ResultsError

    if not problems:
        return
    lines = list(problems[:_SHOWN_PROBLEMS])
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(problems) - _SHOWN_PROBLEMS} more like these.")
    if len(problems) > 1:
        lines.append(f"{told}: {len(problems)} things are wrong.")
    raise ResultsError("\n".join(lines))


def _print(text: str) -> None:
    from rich.console import Console

    Console().print(text, soft_wrap=True, highlight=False, markup=False)


def _count(runs: Sized) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def _one_line(text: str) -> str:
    from audiocl_bench.submission.bounded import shown

    return shown(text, 500)


def _paths(report: Report) -> list[str]:
    """Return the places of a person's disk that the runs tell of: where weights were read from."""
    import json

    sources = {str(json.loads(notes)["backbone"]["source"]) for notes in report.runs["notes"]}
    return sorted(_one_line(source) for source in sources if source.startswith(("/", "~", ".")))
