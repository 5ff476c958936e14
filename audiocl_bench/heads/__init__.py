"""Closed-form classifiers on frozen features: ridge on random ReLU features, nearest class mean, LDA; class Gaussians.

Everything here is float64, exact and streaming: a head that saw its data session by session, in any order and in any
batch size, equals the head that saw the union at once up to rounding. No head keeps a clip; `state_dict()` is all that
a head keeps and `nbytes` is its size. `ClassGaussians` classifies nothing: trained heads draw features of earlier
classes from it. It takes a class once, all its rows together, because k-means needs them.

Sources: RanPAC (McDonnell et al. 2023; official code, `M`, `lambda` grid, 80/20 choice), ACIL (Zhuang et al. 2022;
official code, `gamma`, buffer), PACE (arXiv 2602.03355, Eq 2 and 3), SimpleCIL, FSA (Panos et al. 2023).
"""

from audiocl_bench.heads._inputs import one_hot
from audiocl_bench.heads.class_means import LDAHead, NCMHead
from audiocl_bench.heads.gaussians import ClassGaussians
from audiocl_bench.heads.projection import RandomProjection
from audiocl_bench.heads.ridge import RidgeHead
from audiocl_bench.heads.search import LAMBDAS, RidgeChoice, choose_lambda, holdout, ridge_loo, ridge_path
from audiocl_bench.heads.standardised import STRENGTHS, StandardisedRidge

__all__ = [
    "LAMBDAS",
    "STRENGTHS",
    "ClassGaussians",
    "LDAHead",
    "NCMHead",
    "RandomProjection",
    "RidgeChoice",
    "RidgeHead",
    "StandardisedRidge",
    "choose_lambda",
    "holdout",
    "one_hot",
    "ridge_loo",
    "ridge_path",
]
