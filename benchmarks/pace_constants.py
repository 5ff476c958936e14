"""Compare settings of PACE on training clips only: every example stream's training part is split again.

    python benchmarks/pace_constants.py streams  --out DIR     write one TOML file per stream into DIR
    python benchmarks/pace_constants.py commands --out DIR     the audiocl commands, one a line
    python benchmarks/pace_constants.py table    --results DIR

Test clips of the example streams are in none of these files, so what is chosen here may be reported there.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from audiocl_bench import benchmarks
from audiocl_bench.results import ResultsDir

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
VARIANTS: tuple[tuple[str, ...], ...] = (
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
EFFECTLESS = {"esc50_fold4": ("projection_norm=none",)}  # one session adapts there


def streams(out: Path) -> None:
    """Write `out`/NAME.toml for every example: its training groups only, a part of them for validation."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("arabic_speakers", "arabic_keywords", "esc50_fold4"):
        source = EXAMPLES / f"{name}.toml"
        benchmark = benchmarks.get(str(source))
        root = benchmark.find(None)
        index = benchmark.checked(benchmark.corpus.index(root))
        stream = benchmark.stream("own", 0, index)
        part = index[~stream.is_test[index["clip_id"].map({c: i for i, c in enumerate(stream.clip_ids)})]]
        # A class with one recording left cannot be split again (and one that is split by clip has test clips in it).
        part = part[part.groupby("label")["group"].transform("nunique") > 1]
        groups, count, step = sorted(set(part["group"])), part["label"].nunique(), benchmark.classes_per_session
        assert isinstance(step, int)
        sizes = [step] * (count // step) + [count % step] * (count % step > 0)
        text = source.read_text()
        text = re.sub(r'^name = ".*?"', f'name = "{benchmark.name}-train"', text, flags=re.M)
        text = re.sub(r'^root = ".*?"', f"root = {json.dumps(str(root.resolve()))}", text, flags=re.M)
        text = re.sub(r"^where = .*\n", "", text, flags=re.M)
        text = re.sub(r"^split_within = .*\n", "", text, flags=re.M)
        key = "src_file" if "src_file" in text else "group"
        text = text.replace("\n[stream]", f"where = {{ {key} = {json.dumps(groups)} }}\n\n[stream]")
        text = re.sub(r"^classes_per_session = \d+", f"classes_per_session = {sizes}", text, flags=re.M)
        (out / f"{name}.toml").write_text(text)


def commands(out: Path, backbone: str, order: int) -> None:
    """Print the commands, cheapest evidence first."""
    for settings in VARIANTS:
        for name in ("arabic_speakers", "arabic_keywords", "esc50_fold4"):
            if settings in [(s,) for s in EFFECTLESS.get(name, ())]:
                continue
            extra = ("adapted_sessions=1",) if name == "esc50_fold4" else ()
            chosen = " ".join(f"--set {setting}" for setting in (*settings, *extra))
            print(f"audiocl run -m pace -b {out}/{name}.toml --backbone {backbone} --orders {order} --drift {chosen}")


def table(results: Path) -> None:
    """Print accuracy on the validation groups: one row per setting, one column per stream, mean over orders."""
    runs = ResultsDir(results).runs()
    keys = sorted({setting.partition("=")[0] for settings in VARIANTS for setting in settings})
    configs = pd.DataFrame([json.loads(text) for text in runs["method_config"]])[keys].astype(str)
    runs["settings"] = configs.apply(lambda row: ", ".join(f"{k}={v}" for k, v in row.items()), axis=1)
    print(tabulate(runs.pivot_table("final_accuracy", "settings", "benchmark"), headers="keys", floatfmt=".1f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("streams", "commands", "table"))
    parser.add_argument("--out", type=Path, default=Path("training-only"))
    parser.add_argument("--results", type=Path, default=Path("results/examples"))
    parser.add_argument("--backbone", default="../shared/weights/whisper-tiny.en-encoder")
    parser.add_argument("--order", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "streams":
        streams(arguments.out)
    elif arguments.what == "commands":
        commands(arguments.out, arguments.backbone, arguments.order)
    else:
        table(arguments.results)


if __name__ == "__main__":
    main()
