"""Compare settings on training clips only: every example stream's training part is split again.

    python benchmarks/training_only.py streams  --out DIR     write one TOML file per stream into DIR
    python benchmarks/training_only.py commands --out DIR     the audiocl commands, one a line
    python benchmarks/training_only.py table    --results DIR

Test clips of the example streams are in none of these files, so what is chosen here may be reported there.
`--what pace` (the default) compares PACE's constants on whole streams, `--what adaptation` the rates of first-session
adaptation (PACE, RanPAC, FSA), `--what rates` those of prompt methods and LoRA-DRS on the first `--sessions` sessions.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from audiocl_bench import benchmarks
from audiocl_bench.results import ResultsDir

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PACE: tuple[tuple[str, ...], ...] = (
    (),
    ("fsa=false",),
    ("temporary=class-means",),
    ("lora_scale=0.25",),
    ("lora_scale=0.25", "temporary=class-means"),
    ("clip=0.3",),
    ("projection_norm=none",),
    ("gamma_rule=first",),
    ("regulariser=none",),
)
RATES: dict[str, tuple[tuple[str, ...], ...]] = {
    "l2p": (("lr=0.03",), ("lr=0.1",)),
    "dualprompt": (("lr=0.03",), ("lr=0.1",), ("lr=0.3",)),
    "sprompt++": (("lr=0.03",), ("lr=0.1",)),
    "coda-prompt": (("lr=0.001",), ("lr=0.003",), ("lr=0.01",)),
    "hide-prompt": (("lr=0.03",), ("lr=0.1",), ("lr=0.3",), ("tii_lr=0.005",), ("lr=0.1", "tii_lr=0.005")),
    "lora-drs": (("lr=0.0005",), ("lr=0.0015",), ("lr=0.005",)),
}
"""Every one trained for the stream's E_0 epochs in batches of 24, as PACE is."""
BUDGET = ("epochs=none", "batch_size=24")
ADAPTATION: dict[str, tuple[tuple[str, ...], ...]] = {
    "pace": (
        (),
        ("fsa=false",),
        ("lr_head=0.1",),
        ("lr_backbone=0.2", "lr_head=0.1"),
        ("lr_backbone=0.5",),
        ("lr_backbone=0.5", "lr_head=0.1"),
        ("lr_backbone=2.0", "lr_head=0.1"),
    ),
    "ranpac": ((), ("lr=0.03",), ("lr=0.1",)),
    "fsa": (
        (),
        ("fsa=false",),
        ("lr=0.0001",),
        *(("trains=film", f"lr={rate}") for rate in (0.005, 0.001, 0.0001)),
    ),
}
"""For networks that the published rates leave as they are (eat-mini); FSA has no published rate for a transformer."""
EFFECTLESS = {"esc50_fold4": ("projection_norm=none",)}  # one session adapts there


def streams(out: Path, sessions: int | None) -> None:
    """Write `out`/NAME.toml for every example: its training groups only, a part of them for validation.

    Args:
        out: folder.
        sessions: keep the classes of this many sessions (of class order 1); None keeps all.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ("arabic_speakers", "arabic_keywords", "esc50_fold4"):
        source = EXAMPLES / f"{name}.toml"
        benchmark = benchmarks.get(str(source))
        root = benchmark.find(None)
        index = benchmark.checked(benchmark.corpus.index(root))
        stream = benchmark.stream("own", 1, index)
        part = index[~stream.is_test[index["clip_id"].map({c: i for i, c in enumerate(stream.clip_ids)})]]
        # A class with one recording left cannot be split again (and one that is split by clip has test clips in it).
        part = part[part.groupby("label")["group"].transform("nunique") > 1]
        if sessions is not None:
            kept = {stream.classes[c] for t in range(sessions) for c in stream.session_classes(t)}
            part = part[part["label"].isin(kept)]
        groups, count, step = sorted(set(part["group"])), part["label"].nunique(), benchmark.classes_per_session
        assert isinstance(step, int)
        sizes = [step] * (count // step) + [count % step] * (count % step > 0)
        text = source.read_text()
        text = re.sub(r'^name = ".*?"', f'name = "{benchmark.name}-train"', text, flags=re.M)
        text = re.sub(r'^root = ".*?"', f"root = {json.dumps(str(root.resolve()))}", text, flags=re.M)
        text = re.sub(r"^where = .*\n", "", text, flags=re.M)
        text = re.sub(r"^split_within = .*\n", "", text, flags=re.M)
        group, label = ("src_file", "category") if "src_file" in text else ("group", "label")
        where = f"{group} = {json.dumps(groups)}, {label} = {json.dumps(sorted(set(part['label'])))}"
        text = text.replace("\n[stream]", f"where = {{ {where} }}\n\n[stream]")
        text = re.sub(r"^classes_per_session = \d+", f"classes_per_session = {sizes}", text, flags=re.M)
        (out / f"{name}.toml").write_text(text)


def commands(out: Path, backbone: str, order: int, what: str) -> Iterator[str]:
    """Yield the commands, cheapest evidence first."""
    for method, settings in variants(what):
        for name in ("arabic_speakers", "arabic_keywords", "esc50_fold4"):
            if method == "pace" and settings in [(s,) for s in EFFECTLESS.get(name, ())]:
                continue
            extra = ("adapted_sessions=1",) if name == "esc50_fold4" and method == "pace" else ()
            chosen = " ".join(f"--set {setting}" for setting in (*settings, *extra))
            where = f"-b {out}/{name}.toml --backbone {backbone} --orders {order}"
            yield f"audiocl run -m {method} {where} --drift {chosen}"


def variants(what: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return (method, settings) of what is compared."""
    if what == "pace":
        return [("pace", settings) for settings in PACE]
    if what == "adaptation":
        return [(method, settings) for method, several in ADAPTATION.items() for settings in several]
    return [(method, (*BUDGET, *settings)) for method, several in RATES.items() for settings in several]


def table(results: Path, what: str) -> str:
    """Return accuracy on the validation groups: a row per method and setting, a column per stream, mean over orders."""
    runs = ResultsDir(results).runs()
    keys = sorted({setting.partition("=")[0] for _, settings in variants(what) for setting in settings})
    configs = [json.loads(text) for text in runs["method_config"]]
    runs["settings"] = [", ".join(f"{k}={c[k]}" for k in keys if k in c) for c in configs]
    cells = runs.pivot_table("final_accuracy", ["method", "settings"], "benchmark").reset_index()
    return tabulate(cells.to_numpy().tolist(), list(cells.columns), floatfmt=".1f", tablefmt="github")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("streams", "commands", "table"))
    parser.add_argument("--out", type=Path, default=Path("training-only"))
    parser.add_argument("--results", type=Path, default=Path("results/examples"))
    parser.add_argument("--backbone", default="../shared/weights/whisper-tiny.en-encoder")
    parser.add_argument("--order", type=int, default=1)
    parser.add_argument("--what", choices=("pace", "rates", "adaptation"), default="pace")
    parser.add_argument("--sessions", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.step == "streams":
        streams(arguments.out, arguments.sessions)
    elif arguments.step == "commands":
        print("\n".join(commands(arguments.out, arguments.backbone, arguments.order, arguments.what)))
    else:
        print(table(arguments.results, arguments.what))


if __name__ == "__main__":
    main()
