"""The frozen random layer in front of the ridge (RanPAC phase 2; ACIL "buffer")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.errors import CheckpointError
from audiocl_bench.heads._inputs import check_features
from audiocl_bench.seeding import numpy_generator


@dataclass(frozen=True, eq=False)
class RandomProjection:
    """A frozen random layer h = ReLU(f W), drawn once and never trained (RanPAC phase 2; ACIL "buffer").

    The matrix follows from the recipe (dim, width, scaling, seed, purpose), so checkpoints carry the recipe alone.

    Attributes:
        dim: number of features f coming in.
        width: number of random features h going out; 0 means identity (no projection, no ReLU).
        scaling: "ranpac" (entries N(0, 1)) or "acil" (entries U(-1/sqrt(dim), 1/sqrt(dim))). E[h^2] differs by the
            factor 3 dim (2304 at 768), so a ridge chosen under one scaling means nothing under the other.
        seed: seed of the run.
        purpose: what else the draw depends on, see `audiocl_bench.seeding`.
        matrix: W [dim, width] float64; empty for the identity.
    """

    dim: int
    width: int
    scaling: str
    seed: int
    purpose: tuple[str | int, ...]
    matrix: Tensor

    @classmethod
    def draw(
        cls,
        dim: int,
        width: int | None,
        *,
        scaling: Literal["ranpac", "acil"] = "ranpac",
        seed: int,
        purpose: Sequence[str | int] = ("projection",),
    ) -> RandomProjection:
        """Draw the layer. `width` 0 or None gives the identity.

        NumPy draws the entries: its streams do not depend on the processor's vector width, torch's normals do.

        Raises:
            ValueError: a size is negative, or the scaling is unknown.
        """
        width = width or 0
        if dim < 1 or width < 0:
            raise ValueError(f"a random projection needs dim >= 1 and width >= 0, got {dim} and {width}.")
        if scaling not in ("ranpac", "acil"):
            raise ValueError(f"scaling must be 'ranpac' or 'acil', got {scaling!r}.")
        generator = numpy_generator(seed, *purpose)
        if width == 0:
            drawn = np.zeros((dim, 0))
        elif scaling == "ranpac":
            drawn = generator.standard_normal((dim, width))  # RanPAC: W_r ~ N(0, 1), no bias, no scaling
        else:
            drawn = generator.uniform(-1.0, 1.0, (dim, width)) / np.sqrt(dim)  # ACIL: torch's Linear default, no bias
        return cls(dim, width, scaling, seed, tuple(purpose), torch.from_numpy(drawn))

    @property
    def out_width(self) -> int:
        """Number of columns that `__call__` returns: `width`, or `dim` for the identity."""
        return self.width or self.dim

    @property
    def nbytes(self) -> int:
        """Size of the drawn matrix in bytes (0 for the identity)."""
        return self.matrix.numel() * self.matrix.element_size()

    def __call__(self, features: Tensor) -> Tensor:
        """Return h = ReLU(f W) [n, width] in float64 for features [n, dim] of any float type (identity: f itself).

        Raises:
            ValueError: wrong shape, or not finite.
        """
        f = check_features(features, self.dim)
        if self.width == 0:
            return f
        return torch.mm(f, self.matrix).relu_()  # RanPAC: h = ReLU(f W_r);  ACIL: phi(x) = ReLU(f W_b)

    def recipe(self) -> dict[str, Any]:
        """Return what `from_recipe` needs to draw the same matrix again, with a digest to prove that it did."""
        return {
            "dim": self.dim,
            "width": self.width,
            "scaling": self.scaling,
            "seed": self.seed,
            "purpose": list(self.purpose),
            "sha256": self.digest(),
        }

    def digest(self) -> str:
        """Return the SHA-256 of the matrix's bytes."""
        import hashlib

        return hashlib.sha256(np.ascontiguousarray(self.matrix.numpy()).data).hexdigest()

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> RandomProjection:
        """Draw the matrix of `recipe()` again.

        Raises:
            CheckpointError: this installation's NumPy draws other numbers than the one that wrote the recipe.
        """
        drawn = cls.draw(
            int(recipe["dim"]),
            int(recipe["width"]),
            scaling=recipe["scaling"],
            seed=int(recipe["seed"]),
            purpose=tuple(recipe["purpose"]),
        )
        if drawn.digest() != recipe["sha256"]:
            raise CheckpointError(
                f"the random projection of seed {drawn.seed} comes out differently here (NumPy {np.__version__}) than "
                "where the checkpoint was written: resume with the NumPy version named in its provenance."
            )
        return drawn
