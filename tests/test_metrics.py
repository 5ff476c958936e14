"""Scores against the paper's published matrices, matrices worked by hand, other libraries, and properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from audiocl_bench import metrics
from audiocl_bench.errors import ResultsError
from audiocl_bench.files import paper_dir

NAN = math.nan


def matrix(*rows: list[float]) -> np.ndarray:
    out = np.full((len(rows), len(rows)), NAN)
    for t, row in enumerate(rows):
        out[t, : len(row)] = row
    return out


def table(right: dict[tuple[int, int], tuple[int, int]]) -> pd.DataFrame:
    """Build a prediction table from {(after, session): (correct, clips)}, one class per session."""
    rows = []
    for (after, session), (hits, clips) in right.items():
        label = f"c{session}"
        rows += [(after, session, label, label if k < hits else "other") for k in range(clips)]
    return pd.DataFrame(rows, columns=list(metrics.PREDICTION_COLUMNS))


# --- The paper's Fig. 9 (VocalSet): the final score must be Table 2's number up to the figure's rounding.


@pytest.mark.parametrize(
    ("method", "final", "incremental", "forgotten"),
    [
        ("pace", 69.06, 78.56, 12.2),
        ("pace-no-msa", 61.51, 77.0, 18.8),
        ("pace-no-projection", 58.54, 61.3, 23.5),
    ],
)
def test_paper_figure_9(method: str, final: float, incremental: float, forgotten: float) -> None:
    cells = pd.read_csv(paper_dir() / "fig9.csv").query("method == @method")
    A = np.full((8, 8), NAN)
    A[cells["after_session"] - 1, cells["test_session"] - 1] = cells["accuracy"] / 100
    assert 100 * metrics.final_accuracy(A) == pytest.approx(final, abs=0.005)
    assert 100 * metrics.average_incremental_accuracy(A) == pytest.approx(incremental, abs=0.05)
    assert 100 * metrics.forgetting(A) == pytest.approx(forgotten, abs=0.05)


# --- By hand


def test_matrix_worked_by_hand() -> None:
    A = matrix([0.8], [0.9, 0.5], [0.6, 0.4, 1.0])
    assert metrics.final_accuracy(A) == pytest.approx(2.0 / 3)
    np.testing.assert_allclose(metrics.session_averages(A), [0.8, 0.7, 2.0 / 3])
    assert metrics.average_incremental_accuracy(A) == pytest.approx((0.8 + 0.7 + 2 / 3) / 3)
    assert metrics.forgetting(A) == pytest.approx(((0.9 - 0.6) + (0.5 - 0.4)) / 2)
    assert metrics.backward_transfer(A) == pytest.approx(((0.6 - 0.8) + (0.4 - 0.5)) / 2)
    assert metrics.plasticity(A) == pytest.approx((0.8 + 0.5 + 1.0) / 3)


def test_forgetting_looks_at_the_sessions_before_the_last_only() -> None:
    # Session 0 is best after the last session: forgetting is then negative, not zero.
    assert metrics.forgetting(matrix([0.5], [0.7, 0.9])) == pytest.approx(-0.2)


def test_predictions_worked_by_hand_with_uneven_test_sets() -> None:
    predictions = table({(0, 0): (8, 10), (1, 0): (5, 10), (1, 1): (2, 2)})
    np.testing.assert_allclose(metrics.accuracy_matrix(predictions), matrix([0.8], [0.5, 1.0]))
    assert metrics.final_accuracy(metrics.accuracy_matrix(predictions)) == pytest.approx(0.75)
    assert metrics.micro_accuracy(predictions) == pytest.approx(7 / 12)
    assert metrics.average_incremental_accuracy_by_sample(predictions) == pytest.approx((0.8 + 7 / 12) / 2)


def test_balanced_accuracy_weighs_classes_not_clips_or_sessions() -> None:
    # Session 0 has two classes of unlike size; recalls 1/4, 1, 1/2.
    rows = [(1, 0, "a", p) for p in "abbb"] + [(1, 0, "b", "b")] + [(1, 1, "c", p) for p in "ca"]
    predictions = pd.DataFrame(rows, columns=list(metrics.PREDICTION_COLUMNS))
    assert metrics.balanced_accuracy(predictions) == pytest.approx((0.25 + 1 + 0.5) / 3)
    assert metrics.micro_accuracy(predictions) == pytest.approx(3 / 7)
    assert metrics.final_accuracy(metrics.accuracy_matrix(predictions)) == pytest.approx((2 / 5 + 1 / 2) / 2)


def test_joint_training_has_only_the_last_row() -> None:
    predictions = table({(2, 0): (1, 2), (2, 1): (2, 2), (2, 2): (3, 6)})
    A = metrics.accuracy_matrix(predictions)
    assert np.isnan(A[:2]).all()
    assert metrics.final_accuracy(A) == pytest.approx(2 / 3)
    assert metrics.micro_accuracy(predictions) == pytest.approx(0.6)
    for name in ("average_incremental_accuracy", "forgetting", "backward_transfer", "plasticity"):
        assert math.isnan(getattr(metrics, name)(A)), name
    assert math.isnan(metrics.average_incremental_accuracy_by_sample(predictions))


def test_one_session() -> None:
    A = matrix([0.4])
    assert metrics.final_accuracy(A) == metrics.plasticity(A) == metrics.average_incremental_accuracy(A) == 0.4
    assert math.isnan(metrics.forgetting(A))
    assert math.isnan(metrics.backward_transfer(A))


def test_gap_to_joint() -> None:
    assert metrics.gap_to_joint(0.7, 0.9) == pytest.approx(0.2)
    with pytest.raises(ResultsError, match="fraction"):
        metrics.gap_to_joint(70.0, 0.9)


def test_labels_as_numbers_and_as_categoricals() -> None:
    named = table({(0, 0): (1, 2), (1, 0): (1, 2), (1, 1): (0, 3)})
    numbered = named.assign(
        label=named["label"].map({"c0": 0, "c1": 1}), predicted=named["predicted"].map({"c0": 0, "c1": 1, "other": 2})
    )
    categorical = named.astype({"label": "category", "predicted": "category"})
    for other in (numbered, categorical):
        np.testing.assert_array_equal(metrics.accuracy_matrix(named), metrics.accuracy_matrix(other))


# --- Properties


@st.composite
def prediction_tables(draw: st.DrawFn) -> pd.DataFrame:
    """Draw a stream's predictions: 1 to 4 sessions, 1 to 3 classes each, 1 to 4 clips per class."""
    sessions = draw(st.integers(1, 4))
    classes = [draw(st.integers(1, 3)) for _ in range(sessions)]
    first = np.cumsum([0, *classes])
    clips = [[draw(st.integers(1, 4)) for _ in range(n)] for n in classes]
    rows = []
    for after in range(sessions):
        for session in range(after + 1):
            for k in range(classes[session]):
                label = int(first[session]) + k
                seen = st.integers(0, int(first[after + 1]) - 1)
                rows += [(after, session, label, draw(seen)) for _ in range(clips[session][k])]
    return pd.DataFrame(rows, columns=list(metrics.PREDICTION_COLUMNS))


@settings(max_examples=60, deadline=None)
@given(prediction_tables())
def test_bounds_and_agreement_with_other_definitions(predictions: pd.DataFrame) -> None:
    A = metrics.accuracy_matrix(predictions)
    fractions = [
        metrics.final_accuracy(A),
        metrics.average_incremental_accuracy(A),
        metrics.average_incremental_accuracy_by_sample(predictions),
        metrics.plasticity(A),
        metrics.micro_accuracy(predictions),
        metrics.balanced_accuracy(predictions),
    ]
    assert all(0.0 <= value <= 1.0 for value in fractions)
    # The best accuracy before the last session is at least the one right after learning it.
    assert len(A) == 1 or -1.0 <= -metrics.backward_transfer(A) <= metrics.forgetting(A) + 1e-12 <= 1.0 + 1e-12
    last = predictions[predictions["after_session"] == len(A) - 1]
    assert metrics.micro_accuracy(predictions) == pytest.approx(float((last["label"] == last["predicted"]).mean()))
    recall = [float((group["label"] == group["predicted"]).mean()) for _, group in last.groupby("label")]
    assert metrics.balanced_accuracy(predictions) == pytest.approx(np.mean(recall))
    # scikit-learn warns of classes that were only predicted, and of a single class.
    if set(last["predicted"]) <= set(last["label"]) and last["label"].nunique() > 1:
        assert metrics.balanced_accuracy(predictions) == pytest.approx(
            balanced_accuracy_score(last["label"], last["predicted"])
        )


@settings(max_examples=30, deadline=None)
@given(prediction_tables())
def test_perfect_predictions(predictions: pd.DataFrame) -> None:
    perfect = predictions.assign(predicted=predictions["label"])
    A = metrics.accuracy_matrix(perfect)
    assert metrics.final_accuracy(A) == metrics.average_incremental_accuracy(A) == metrics.plasticity(A) == 1.0
    assert metrics.micro_accuracy(perfect) == metrics.balanced_accuracy(perfect) == 1.0
    assert len(A) == 1 or metrics.forgetting(A) == metrics.backward_transfer(A) == 0.0


@settings(max_examples=30, deadline=None)
@given(prediction_tables(), st.randoms(use_true_random=False))
def test_row_order_does_not_matter(predictions: pd.DataFrame, random: object) -> None:
    shuffled = predictions.iloc[random.sample(range(len(predictions)), len(predictions))]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(metrics.accuracy_matrix(predictions), metrics.accuracy_matrix(shuffled))
    assert metrics.balanced_accuracy(predictions) == pytest.approx(metrics.balanced_accuracy(shuffled))


# --- Bad input


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((2, 3)), "square"),
        (np.zeros((0, 0)), "square"),
        (np.zeros((2, 2)), "above the diagonal"),
        (matrix([0.5], [NAN, 0.5]), "partly filled"),
        (matrix([0.5], [NAN, NAN]), "last row"),
        (matrix([50.0], [40.0, 30.0]), "divide percentages by 100"),
        (matrix([-0.1]), "fraction"),
        (matrix([math.inf]), "fraction"),
    ],
)
def test_bad_matrices_are_refused(bad: np.ndarray, says: str) -> None:
    for score in (
        metrics.final_accuracy,
        metrics.average_incremental_accuracy,
        metrics.forgetting,
        metrics.backward_transfer,
        metrics.plasticity,
    ):
        with pytest.raises(ResultsError, match=says):
            score(bad)


def _good() -> pd.DataFrame:
    return table({(0, 0): (1, 2), (1, 0): (1, 2), (1, 1): (1, 2)})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (lambda p: p.drop(columns="predicted"), "lacks the column predicted"),
        (lambda p: p.iloc[:0], "empty"),
        (lambda p: p.assign(session=p["session"] + 1), "only classes learned so far"),
        (lambda p: p.assign(session=p["session"] - 1), "negative"),
        (lambda p: p.assign(after_session=p["after_session"].astype(float)), "whole numbers"),
        (lambda p: p.assign(after_session=p["after_session"] * 10**9), "only 6 rows"),
        (lambda p: p.assign(predicted=0), "of type"),
        (lambda p: p.assign(predicted=[None] + ["c0"] * 5), "empty value in column 'predicted'"),
        (lambda p: p.drop(index=0), "same clips"),
        (lambda p: p[(p["after_session"] == 0) | (p["session"] == 1)], "no test clips of session 0 after session 1"),
        (lambda p: p.assign(label="c0"), "more than one session"),
    ],
)
def test_bad_prediction_tables_are_refused(bad: object, says: str) -> None:
    with pytest.raises(ResultsError, match=says):
        metrics.accuracy_matrix(bad(_good()))  # type: ignore[operator]


# --- Over orders and seeds


def test_summary_is_the_student_t_interval() -> None:
    values = [71.0, 73.5, 70.2, 74.1, 72.9]
    summary = metrics.summarise(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.n, summary.mean) == (5, pytest.approx(72.34))
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))
    assert summary.half_width == pytest.approx((high - low) / 2)
    # t_{0.975, 1} = 12.706: two values one apart.
    assert metrics.summarise([0.0, 1.0]).half_width == pytest.approx(12.7062 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4)


def test_summary_of_one_of_equal_and_of_missing_values() -> None:
    one = metrics.summarise([0.5])
    assert (one.n, one.mean) == (1, 0.5)
    assert math.isnan(one.low)
    assert math.isnan(one.half_width)
    equal = metrics.summarise([0.1] * 3)
    assert equal.std == equal.half_width == 0.0
    assert math.isnan(metrics.summarise([0.5, NAN]).mean)
    for bad in ([], [math.inf]):
        with pytest.raises(ResultsError):
            metrics.summarise(bad)
    with pytest.raises(ResultsError, match="level"):
        metrics.summarise([1.0], level=95)


def test_comparison_agrees_with_scipy_and_reports_what_it_left_out() -> None:
    a = {(o, 0): v for o, v in enumerate([71.0, 73.5, 70.2, 74.1, 72.9, 71.7])}
    b = {(o, 0): v for o, v in enumerate([69.5, 73.0, 70.9, 72.0, 71.1])}
    found = metrics.compare(a, b)
    ours, theirs = [a[k] for k in b], list(b.values())
    assert found.unmatched == ((5, 0),)
    assert found.difference.mean == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert found.t_p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    exact = stats.permutation_test(
        (ours, theirs), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert found.sign_flip_p_value == pytest.approx(exact.pvalue)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=7))
def test_sign_flip_is_the_full_enumeration(differences: list[int]) -> None:
    hits = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= abs(sum(differences))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    # Tenths are not exact in binary, so ties would break without a tolerance.
    assert metrics.sign_flip_p_value([d / 10 for d in differences]) == pytest.approx(np.mean(hits))


def test_sign_flip_limits() -> None:
    assert metrics.sign_flip_p_value([1.0] * 5) == pytest.approx(2 / 2**5)
    assert metrics.sign_flip_p_value([0.0] * 3) == 1.0
    assert math.isnan(metrics.sign_flip_p_value([1.0] * 21))


def test_comparison_without_spread_claims_nothing() -> None:
    found = metrics.compare({0: 0.3, 1: 0.7}, {0: 0.2, 1: 0.6})
    assert math.isnan(found.t_p_value)
    assert found.sign_flip_p_value == pytest.approx(0.5)
    with pytest.raises(ResultsError, match="share no"):
        metrics.compare({0: 0.3}, {1: 0.2})
    with pytest.raises(ResultsError, match="missing"):
        metrics.compare({0: NAN}, {0: 0.2})


def test_by_order_and_seed() -> None:
    runs = pd.DataFrame({"order": [0, 1], "seed": [0, 0], "final_accuracy": [70.0, 71.0]})
    assert metrics.by_order_and_seed(runs, "final_accuracy") == {(0, 0): 70.0, (1, 0): 71.0}
    with pytest.raises(ResultsError, match="order 0 and seed 0"):
        metrics.by_order_and_seed(runs.assign(order=0), "final_accuracy")
