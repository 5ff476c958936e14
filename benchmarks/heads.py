"""Time the closed-form head against the plain way of computing the same numbers, in one run on one machine.

1. One session (default 400 clips, 50 classes): RanPAC's ridge search over 17 candidates and the final solve.
   Plain: build G = H^T H and factor the width x width matrix G + lam I once per candidate. `--dense-solves` candidates
   are really timed, and their mean is scaled to 17 (labelled so).
2. A stream of small sessions at a fixed ridge: `RidgeHead` grown session by session, against (a) the same row form
   computed from nothing in each session, (b) the published recursion (PACE Eq 2 and 3) on width x width matrices.
3. `limit`: 315 sessions of two classes and 16 clips, 10,000 features (TIMIT, two speakers a session), against solving
   from nothing each session and 17 dense float32 solves of width x width. `tune`: the choice of the ridge at its end.
   `gram`: sessions of 16 clips after more clips than features. `--limit-scale 0.25` takes a quarter of features and
   sessions.

    python benchmarks/heads.py --width 10000
    python benchmarks/heads.py --parts limit --limit-scale 1
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import references
import scipy.linalg
import torch
from tabulate import tabulate

from audiocl_bench.heads import LAMBDAS, RandomProjection, RidgeHead, choose_lambda, holdout


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def dense_solve(G: np.ndarray, Q: np.ndarray, lam: float) -> np.ndarray:
    A = G.copy()
    A.flat[:: len(A) + 1] += lam
    return scipy.linalg.cho_solve(scipy.linalg.cho_factor(A, lower=True, overwrite_a=True, check_finite=False), Q)


def clips(rows: int, classes: int, first: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = generator.normal(size=(classes, 768))
    return torch.from_numpy(centres[labels] + generator.normal(size=(rows, 768))), torch.from_numpy(first + labels)


def one_session(width: int, rows: int, classes: int, dense: int) -> None:
    features, labels = clips(rows, classes, 0, 0)
    H = RandomProjection.draw(768, width, seed=0)(features)

    def ours() -> tuple[float, torch.Tensor]:
        lam = choose_lambda(H, labels, classes, seed=0).lam
        head = RidgeHead(width)
        head.update(H, labels, classes)
        return lam, head.solve(lam)

    timed(ours)  # the first call also loads the linear algebra library
    repeats = [timed(ours)[0] for _ in range(5)]
    ours_s = float(np.median(repeats))
    lam, _ = ours()

    h, y = H.numpy(), np.eye(classes)[labels.numpy()]
    fit, val = (part.numpy() for part in holdout(labels, seed=0))
    start = time.perf_counter()
    G = h[fit].T @ h[fit]
    gram_s = time.perf_counter() - start
    Q = h[fit].T @ y[fit]
    # The chosen candidate is tried first, then some spread over the grid. With fewer clips than features G is singular,
    # so the plain way cannot factor the small candidates at all; those are listed and left out of the timing.
    spread = [1e2, 1e4, 1e6, *LAMBDAS[::-1]]
    seconds: dict[float, float] = {}
    dense_mse: dict[float, float] = {}
    failed: list[float] = []
    for candidate in dict.fromkeys([lam, *spread]):
        if len(seconds) == dense:
            break
        start = time.perf_counter()
        try:
            dense_W = dense_solve(G, Q, candidate)
        except np.linalg.LinAlgError:
            failed.append(candidate)
            continue
        seconds[candidate] = time.perf_counter() - start
        dense_mse[candidate] = float(np.mean((h[val] @ dense_W - y[val]) ** 2))
    if not seconds:
        raise SystemExit("the plain way factored none of the 17 candidates: nothing to compare with.")
    ours_mse = dict(zip(LAMBDAS, choose_lambda(H, labels, classes, seed=0).mse, strict=True))
    worst = max(abs(ours_mse[c] - e) / e for c, e in dense_mse.items())
    same = min(seconds)
    head = RidgeHead(width)
    head.update(H, labels, classes)
    W = head.solve(same).numpy()
    final = dense_solve(h.T @ h, h.T @ y, same)
    solves_s = 17 * float(np.mean(list(seconds.values())))
    scaled = f"17 dense solves, scaled from {len(seconds)} timed" if len(seconds) < 17 else "17 dense solves"
    rows_out = [
        ["ours: 17-candidate search + update + solve, median of 5", ours_s, 1.0],
        [f"plain: {scaled}", solves_s, solves_s / ours_s],
        ["plain: Gram matrix of the fitted rows (once)", gram_s, gram_s / ours_s],
        [f"plain: Gram + {scaled}", gram_s + solves_s, (gram_s + solves_s) / ours_s],
    ]
    print(f"\nOne session: {rows} clips, {classes} classes, width {width}, chosen ridge {lam:g}")
    print(tabulate(rows_out, headers=["", "seconds", "x ours"], floatfmt=("", ".3f", ".1f")))
    print("ours, single:", ", ".join(f"{value:.2f} s" for value in repeats))
    print("dense solves, single:", ", ".join(f"{value:.2f} s at {c:g}" for c, value in seconds.items()))
    if failed:
        print("dense Cholesky failed, G + lam I not positive definite in float64, at", *(f"{c:g}" for c in failed))
    print(f"validation MSE of the timed candidates differs by at most {worst:.1e} (relative);")
    print(f"W at {same:g} differs by {np.linalg.norm(W - final) / np.linalg.norm(final):.1e} (relative).")


def growth(width: int, sessions: int, per_session: int, classes: int, recursion_steps: int) -> None:
    lam = 1e4
    projection = RandomProjection.draw(768, width, seed=0)
    head = RidgeHead(width)
    grown: list[float] = []
    fresh: list[tuple[int, float]] = []
    for t in range(sessions):
        features, labels = clips(per_session, classes, classes * t, t)
        H = projection(features)
        seen = classes * (t + 1)

        def learn(H: torch.Tensor = H, labels: torch.Tensor = labels, seen: int = seen) -> None:
            head.update(H, labels, seen)
            head.solve(lam)

        grown.append(timed(learn)[0])
        if t + 1 in (sessions, sessions // 2, sessions // 4) and head.form == "rows":
            R, Z = (head.state_dict()[key] for key in ("R", "Z"))

            def again(R: torch.Tensor = R, Z: torch.Tensor = Z) -> torch.Tensor:
                K = R @ R.T
                K.diagonal().add_(lam)
                return R.T @ torch.cholesky_solve(Z, torch.linalg.cholesky(K))

            fresh.append((t + 1, min(timed(again)[0] for _ in range(2))))
    R_inverse = np.eye(width) / lam
    W = np.zeros((width, classes * sessions))
    steps = []
    for t in range(recursion_steps):
        features, labels = clips(per_session, classes, classes * t, t)
        Phi = projection(features).numpy()
        Y = np.eye(W.shape[1])[labels.numpy()]
        start = time.perf_counter()
        RP = R_inverse @ Phi.T
        R_inverse -= RP @ scipy.linalg.solve(np.eye(len(Phi)) + Phi @ RP, RP.T, assume_a="pos")  # PACE Eq 2
        W += R_inverse @ (Phi.T @ (Y - Phi @ W))  # PACE Eq 3
        steps.append(time.perf_counter() - start)
    step = float(np.mean(steps))
    print(f"\nStream: {sessions} sessions x {per_session} clips x {classes} classes, width {width}, ridge {lam:g}")
    table = [
        [t, here, nothing, nothing / here, step, step / here]
        for t, nothing in fresh
        for here in [float(np.median(grown[max(0, t - 5) : t]))]
    ]
    titles = ["session", "grown, median of 5 (s)", "from nothing, best of 2 (s)", "x grown"]
    titles += [f"recursion, mean of {len(steps)} (s)", "x grown"]
    print(tabulate(table, headers=titles, floatfmt=("", ".3f", ".3f", ".1f", ".3f", ".1f")))
    print(f"all {sessions} sessions grown: {sum(grown):.1f} s; kept {head.nbytes / 2**20:.0f} MiB ", end="")
    print(f"(recursion keeps {width * width * 8 / 2**20:.0f} MiB plus W).")


@cache
def projection_of(width: int) -> RandomProjection:
    return RandomProjection.draw(768, width, seed=0)


def rows_of(width: int, session: int, per_session: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One session: two classes that nobody else has."""
    features, labels = clips(per_session, 2, 2 * session, session)
    return projection_of(width)(features), labels


def dense_float32_seconds(width: int, classes: int) -> float:
    """Seconds of one of the 17 solves of RanPAC's search as published: float32, width x width, `classes` columns."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(width, 64, generator=generator)
    G, Q = half @ half.T, torch.randn(width, classes, generator=generator)
    G.diagonal().add_(1e3)
    return timed(lambda: torch.linalg.solve(G, Q))[0]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(got - want) / torch.linalg.matrix_norm(want))


def limit(scale: float, lam: float = 1e4, per_session: int = 16) -> None:
    width, sessions = max(int(10000 * scale), 64), max(int(315 * scale), 5)
    marks = sorted({max(round(at * sessions / 315), 1) for at in (1, 50, 100, 200, 315)})
    head, kept = RidgeHead(width), []
    spent: list[tuple[float, float, float, float]] = []
    table = []
    dense = dense_float32_seconds(width, 2 * sessions)
    for t in range(sessions):
        H, labels = rows_of(width, t, per_session)
        kept.append((H, labels))
        seen = 2 * (t + 1)
        update = timed(partial(head.update, H, labels, seen))[0]
        solve = timed(partial(head.solve, lam))[0]
        logits = timed(partial(head.logits, H))[0]
        search = timed(partial(choose_lambda, H, labels, seen, seed=0))[0]
        spent.append((update, solve, logits, search))
        if t + 1 in marks:
            R = torch.cat([rows for rows, _ in kept])
            Z = torch.eye(seen, dtype=torch.float64)[torch.cat([y for _, y in kept])]
            nothing, W = timed(partial(references.refactorised, R, Z, lam))
            assert isinstance(W, torch.Tensor)
            parts = np.median(np.array(spent[max(0, t - 4) :]), axis=0)
            mine = float(parts[:2].sum())
            table.append(
                [t + 1, len(R), *parts, nothing, nothing / mine, 17 * dense / mine, relative(head.solve(lam), W)]
            )
    print(
        f"\nThe limit: {sessions} sessions x {per_session} clips x 2 classes, width {width}, ridge {lam:g}: rows form"
    )
    titles = ["session", "clips", "update", "solve", "logits of 16", "search of 17", "from nothing"]
    titles += ["x (update + solve)", "17 float32 solves: x", "error of W"]
    formats = ("", "", ".3f", ".3f", ".3f", ".3f", ".3f", ".1f", ".1f", ".0e")
    print(tabulate(table, headers=titles, floatfmt=formats))
    print("Seconds: median of the last five sessions; from nothing: one call.")
    total = np.array(spent).sum(0)
    print(f"all sessions: update {total[0]:.1f} s, solve {total[1]:.1f} s, search {total[3]:.1f} s;", end=" ")
    print(f"kept {head.nbytes / 2**20:.0f} MiB. One dense float32 solve: {dense:.2f} s (17 scaled from one).")


def tune(scale: float, per_session: int = 16) -> None:
    """The choice of the ridge over everything seen at the end of the limit's stream, made once per growth by half."""
    width, sessions = max(int(10000 * scale), 64), max(int(315 * scale), 5)
    head = RidgeHead(width)
    for t in range(sessions):
        head.update(*rows_of(width, t, per_session), 2 * (t + 1))
    head.solve(1e4)
    seconds, lam = timed(head.tune)
    print(
        f"\nA choice by cross-validation over {len(LAMBDAS)} candidates and {head.num_samples} clips, with its solve:"
    )
    print(
        f"{seconds:.1f} s, {seconds / head.num_samples * per_session:.3f} s a session if shared by {sessions}", end=" "
    )
    print(f"(ridge {lam:g}).")


def limit_gram(scale: float, lam: float = 1e4, per_session: int = 16, sessions: int = 6) -> None:
    width, classes = max(int(10000 * scale), 256), max(int(630 * scale), 4)
    head = RidgeHead(width)
    generator = torch.Generator().manual_seed(1)
    projection = projection_of(width)
    centres = torch.randn(classes, 768, generator=generator, dtype=torch.float64)

    def draw(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(classes, (rows,), generator=generator)
        return projection(centres[labels] + torch.randn(rows, 768, generator=generator, dtype=torch.float64)), labels

    for _ in range(width // 512 + 1):
        head.update(*draw(512), classes)
    head.update(*draw(per_session), classes)
    first = timed(lambda: head.solve(lam))[0]
    grown = []
    for _ in range(sessions):
        H, labels = draw(per_session)
        update = timed(partial(head.update, H, labels, classes))[0]
        grown.append(update + timed(partial(head.solve, lam))[0])
    G, Q = head.gram()

    def again() -> torch.Tensor:
        A = G.clone()
        A.diagonal().add_(lam)
        return torch.cholesky_solve(Q, torch.linalg.cholesky(A))

    nothing, W = timed(again)
    assert isinstance(W, torch.Tensor)
    here = float(np.median(grown))
    waiting = max(width // 16 // per_session, 1)
    print(f"\nGram form: width {width}, {classes} classes, {head.num_samples} clips, sessions of {per_session}")
    table = [
        ["factored and solved (once in " + str(waiting) + " sessions)", first, first / here],
        [f"grown, median of {sessions}", here, 1.0],
        ["grown, with the share of the factorisation", here + first / waiting, 1 + first / waiting / here],
        ["G + lam I factored and solved each session", nothing, nothing / here],
    ]
    print(tabulate(table, headers=["", "seconds", "x grown"], floatfmt=("", ".3f", ".1f")))
    print(f"W differs from the batch solution by {relative(head.solve(lam), W):.0e} (relative).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096, help="random features in the one-session part")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--dense-solves", type=int, default=3, help="dense solves really timed (1..17), scaled to 17")
    parser.add_argument("--growth-width", type=int, default=8192)
    parser.add_argument("--growth-sessions", type=int, default=315, help="0 skips the stream")
    parser.add_argument("--recursion-steps", type=int, default=3)
    share = "share of 10,000 features and 315 sessions in limit, tune and gram; 0 skips them"
    parser.add_argument("--limit-scale", type=float, default=0.2, help=share)
    parts = ("session", "growth", "limit", "tune", "gram")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure; default: all")
    arguments = parser.parse_args()
    dense = min(max(arguments.dense_solves, 1), len(LAMBDAS))
    print(f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}", end="")
    print(f", load average {os.getloadavg()[0]:.1f} at the start")
    if "session" in arguments.parts:
        one_session(arguments.width, arguments.clips, arguments.classes, dense)
    for name, part in (("limit", limit), ("tune", tune), ("gram", limit_gram)):
        if arguments.limit_scale and name in arguments.parts:
            part(arguments.limit_scale)
    if arguments.growth_sessions and "growth" in arguments.parts:
        growth(arguments.growth_width, arguments.growth_sessions, 16, 2, max(arguments.recursion_steps, 1))


if __name__ == "__main__":
    main()
