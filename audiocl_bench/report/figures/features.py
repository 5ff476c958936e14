"""PCA and t-SNE of features before and after adaptation, as the paper's Figures 1 and 3d."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips
from audiocl_bench.report.figures.style import Drawing, Page, legend_line, series, shortened, styled, width_of
from audiocl_bench.runner import EVAL_BATCH, Learned, Material, Plan
from audiocl_bench.seeding import derive, numpy_generator

MOST_CLASSES = 10
"""Most classes of a figure: as many markers differ without doubt."""

MOST_CLIPS = 1000
_VIEWS = {"pca": "PCA", "tsne": "t-SNE"}
_STAGES = {"pretrained": "before adaptation", "adapted": "after the last session"}


@dataclass(frozen=True)
class Samples:
    """Test clips of some classes, encoded by the pretrained network and by the learner.

    Attributes:
        clips: one row per clip: clip_id, label (class name), session (0..).
        pretrained: [n, D] pooled features of the pretrained backbone.
        adapted: [n, D'] what the method's `encode` gives after the last session.
        title: what was learned, for the figure.
        warning: why numbers stay apart from published ones, or "".
        stem: a file name without suffix.
    """

    clips: pd.DataFrame
    pretrained: np.ndarray
    adapted: np.ndarray
    title: str
    warning: str
    stem: str


def check_sizes(classes: int, per_class: int) -> None:
    """Refuse more classes or clips than a figure of features can show.

    Raises:
        ConfigError: one is out of range.
    """
    if not 2 <= classes <= MOST_CLASSES:
        raise ConfigError(f"a figure of features shows 2 to {MOST_CLASSES} classes, not {classes}.")
    most = MOST_CLIPS // MOST_CLASSES
    if not 2 <= per_class <= most:
        raise ConfigError(f"a figure of features shows 2 to {most} clips per class, not {per_class}.")


def collect(
    plan: Plan, material: Material, learned: Learned, *, classes: int = 8, per_class: int = 40, seed: int = 0
) -> Samples:
    """Encode test clips of some classes with the pretrained backbone and with a learner.

    Args:
        plan, material, learned: a run and what `runner.learn_all` gave for it.
        classes: how many, evenly over the order of arrival; 2 to 10.
        per_class: most test clips of a class.
        seed: of the draw of clips.

    Raises:
        ConfigError: `classes` or `per_class` is out of range.
    """
    stream = material.stream
    most = min(MOST_CLASSES, stream.num_classes)
    check_sizes(classes, per_class)
    chosen = np.unique(np.linspace(0, stream.num_classes - 1, min(classes, most)).round().astype(int))
    tested = np.concatenate(learned.tests)
    rows = []
    for label in chosen:
        own = np.sort(tested[learned.labels[tested] == label])
        drawn = numpy_generator(seed, "features", stream.classes[label]).permutation(len(own))[:per_class]
        rows.append(own[np.sort(drawn)])
    picked = np.concatenate(rows)
    before, after = _encoded(plan, material, learned, picked)
    labels = learned.labels[picked]
    clips = pd.DataFrame(
        {
            "clip_id": [stream.clip_ids[row] for row in picked],
            "label": [stream.classes[label] for label in labels],
            "session": stream.session_of_class[labels],
        }
    )
    reasons = {
        "own data": material.benchmark.own_data,
        "mini (synthetic data)": material.benchmark.mini,
        "stand-in backbone": material.backbone.stand_in,
    }
    told = ", ".join(reason for reason, holds in reasons.items() if holds)
    return Samples(
        clips,
        before,
        after,
        f"{plan.label} on {stream.benchmark}, {stream.protocol} split, {material.backbone.name}, "
        f"order {stream.order}, seed {plan.seed}",
        f"Not comparable with published numbers: {told}." if told else "",
        f"features-{plan.label.replace('@', '-')}-{stream.benchmark}",
    )


@torch.no_grad()
def _encoded(plan: Plan, material: Material, learned: Learned, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, D] of the pretrained backbone and [n, D'] of the learner."""
    method, backbone = learned.method, material.backbone
    home = next(backbone.parameters()).device
    before, after = [], []
    for part in np.array_split(rows, range(EVAL_BATCH, len(rows), EVAL_BATCH)):
        mel = learned.read(part)
        after.append(method.encode(Clips(mel)).flatten(1).float().cpu().numpy())
        before.append(backbone.features(mel.to(home)).float().cpu().numpy())
    return np.concatenate(before), np.concatenate(after)


def features(samples: Samples, *, seed: int = 0, width: str | float | None = None) -> Drawing:
    """Draw features before and after adaptation: PCA above, t-SNE below; a marker and colour per class.

    Every panel is fitted on its own features. The silhouette in a panel's title is taken in the whole feature space
    (Rousseeuw 1987; 1 = classes lie apart, 0 = they overlap), not in the picture. Equal input gives equal pictures: the
    start of t-SNE is PCA's, its draws come from `seed`, and it runs in one thread.

    Args:
        samples: from `collect`.
        seed: of t-SNE.
        width: see `style.width_of`.

    Returns:
        data: one row per view ("pca", "tsne"), stage ("pretrained", "adapted") and clip with x and y; silhouette and,
        for PCA, the share of the variance that the picture keeps.

    Raises:
        ConfigError: fewer than four clips or two classes, or features that are no finite numbers.
    """
    stages = {"pretrained": samples.pretrained, "adapted": samples.adapted}
    _check(samples, stages)
    tables = []
    for stage, values in stages.items():
        labels = samples.clips["label"].to_numpy()
        with threadpool_limits(1):
            score = float(silhouette_score(values, labels))
        for view in _VIEWS:
            places, kept = _embedded(view, values, derive(seed, "features", view) % 2**32)
            tables.append(
                samples.clips.assign(
                    view=view, stage=stage, x=places[:, 0], y=places[:, 1], silhouette=score, variance_kept=kept
                )
            )
    data = pd.concat(tables, ignore_index=True)
    names = list(dict.fromkeys(samples.clips["label"]))
    session = samples.clips.drop_duplicates("label").set_index("label")["session"]
    with styled():
        page = Page(
            width_of(width, "double"),
            title=samples.title,
            warning=samples.warning,
            notes=[
                f"{len(samples.clips)} test clips of {len(names)} classes (session in brackets). Silhouette: how far "
                "apart classes lie in the whole feature space. Axes of t-SNE have no unit."
            ],
        )
        grid = page.figure.subplots(2, 2)
        for axes, (view, stage) in zip(grid.flat, ((v, s) for v in _VIEWS for s in _STAGES), strict=True):
            part = data[(data["view"] == view) & (data["stage"] == stage)]
            _scatter(axes, part, names)
            first = part.iloc[0]
            share = f", {100 * first['variance_kept']:.0f} % of the variance" if view == "pca" else ""
            apart = f"{first['silhouette']:.2f}".replace("-", "−")
            axes.set_title(f"{_VIEWS[view]}, {_STAGES[stage]}{share}\nsilhouette {apart}", loc="left")
            if view == "pca":
                axes.set_xlabel("component 1")
                axes.set_ylabel("component 2")
        entries = [
            (
                legend_line(series(i), linestyle="none", markersize=4),
                f"{shortened(name, 1.3, 7)} ({session[name] + 1})",
            )
            for i, name in enumerate(names)
        ]
        figure = page.finish(min(4.6, 1.0 + 0.62 * page.width), entries)
    shown = data.groupby("stage", sort=False)["silhouette"].first()
    alt = (
        f"PCA and t-SNE of features, {samples.title}. Silhouette {shown['pretrained']:.2f} before adaptation and "
        f"{shown['adapted']:.2f} after it. {samples.warning}"
    )
    return Drawing("features", samples.stem, figure, data, alt.strip())


def _scatter(axes: Any, part: pd.DataFrame, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        look, own = series(i), part[part["label"] == name]
        axes.plot(
            own["x"],
            own["y"],
            linestyle="none",
            marker=look.marker,
            color=look.colour,
            markersize=3.6,
            markeredgewidth=0.3,
            markeredgecolor="white",
            gid=f"class-{i}",
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.05)


def _embedded(view: str, values: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Return places [n, 2] and the share of the variance they keep (NaN for t-SNE)."""
    wide = values.astype(np.float64)
    with threadpool_limits(1):  # sums over threads are not repeatable
        if view == "pca":
            fitted = PCA(2, svd_solver="full").fit(wide)
            places, kept = fitted.transform(wide), float(fitted.explained_variance_ratio_.sum())
            return places, kept
        near = min(30.0, (len(wide) - 1) / 3)
        # PCA first, as its authors recommend (van der Maaten and Hinton 2008, section 4.2).
        start = PCA(min(50, *wide.shape), svd_solver="full").fit_transform(wide)
        found = TSNE(2, perplexity=near, init="pca", learning_rate="auto", random_state=seed).fit_transform(start)
    return found.astype(np.float64), float("nan")


def _check(samples: Samples, stages: dict[str, np.ndarray]) -> None:
    if len(samples.clips) < 4 or samples.clips["label"].nunique() < 2:
        raise ConfigError("a figure of features needs at least four clips of two classes: show more classes or clips.")
    for stage, values in stages.items():
        if len(values) != len(samples.clips) or not np.isfinite(values).all():
            raise ConfigError(
                f"the {stage} features are not one row of finite numbers per clip: training may have diverged."
            )
