"""Operations on tensors, counted, and the large ones not carried out.

Inside `Hollow` every PyTorch operation is looked at before it runs: its floating-point operations and bytes are counted
from the shapes. Small operations then run as ever. A large one only returns a tensor of the right shape whose values
nobody computed (mostly memory that was never touched and reads as zero), so that a ridge solution of 10,000 features or
the eigenvectors of every block take microseconds here, and the code around them goes its usual way.

Made-up values must not lead that code astray. Factors and eigenvectors are therefore the identity, eigenvalues one; a
small factorisation that is carried out and fails, as on a made-up sum of squares less real means, counts as done;
comparisons are always carried out; and a division by a zero that was never computed gives a finite number. What a large
operation sums up to a few numbers (norms, means) is one, or random above zero: the two worlds of `phantom`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from audiocl_bench.estimate.work import Meter

LARGE_FLOPS = 5e7
LARGE_BYTES = 1.6e7
"""From these sizes on an operation is not carried out; below, it takes little more time than going round
it, and what decides over a method's way is mostly small."""

_TOUCHED = 1 << 26  # bytes: larger tensors come from the system untouched, which reads as zero
_SMALL = 1 << 14  # numbers: an operation on so few is carried out without a closer look
_FEW = 4096  # numbers that a large operation sums up to
_TRACKED = 4096  # bytes: smaller tensors are not followed
_BUSY = 4.0  # operations per byte: with fewer, moving the numbers takes the time
_ALWAYS = ("_unsafe_view", "_reshape_alias", "set_", "resize_", "_local_scalar_dense", "nonzero", "equal", "random_")
_RAW = ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
_COMPARES = ("eq", "ne", "lt", "le", "gt", "ge", "isfinite", "any", "all")
_WRITES = ("index_put_", "index_copy_", "index_add_", "scatter_", "scatter_add_")
_GATHERS = ("index", "index_select", "embedding", "gather")
_REDUCES = ("sum", "amax", "amin", "mean", "max", "min", "argmax", "argmin", "linalg_vector_norm", "var")
_PRODUCTS = ("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv")
_PUZZLING = ("div", "reciprocal", "rsqrt", "sqrt", "log", "pow", "linalg_solve_triangular", "cholesky_solve")
_FACTORS = ("linalg_cholesky_ex", "linalg_lu_factor_ex", "linalg_inv_ex", "_linalg_solve_ex")  # last result: failed?
_ALGEBRA = (*_PRODUCTS, "linalg_", "_linalg_", "cholesky", "_cholesky", "triangular", "_scaled_dot_product")


class _Operation:
    """What is known of an operation before it is called."""

    __slots__ = ("algebra", "always", "compares", "name", "pointwise", "puzzling", "raw", "view")

    def __init__(self, func: Any) -> None:
        self.name = func.overloadpacket.__name__
        self.view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.pointwise = torch.Tag.pointwise in func.tags
        self.algebra = self.name.startswith(_ALGEBRA)
        self.always, self.compares, self.raw = self.name in _ALWAYS, self.name in _COMPARES, self.name in _RAW
        self.puzzling = self.name.rstrip("_") in _PUZZLING


class Hollow(TorchDispatchMode):
    """Counts operations, and carries out the small ones only.

    Attributes:
        meter: where the counts go.
        tokens: what tokens [.., N, D] look like here and how many they stand for (see `phantom`), as (N, D, real N).
        real: carry out everything (to measure memory).
        draws: of random sums; None makes them one.
    """

    def __init__(self, meter: Meter, *, real: bool = False, draws: torch.Generator | None = None) -> None:
        super().__init__()
        self.meter, self.real, self.draws = meter, real, draws
        self.tokens: tuple[int, int, int] | None = None
        self._operations: dict[Any, _Operation] = {}
        self._known: set[int] = set()
        self._since_check = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler only to stay out of it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count one operation; carry it out, or make its result up."""
        del types
        kwargs = kwargs or {}
        known = self._operations.get(func)
        if known is None:
            known = self._operations[func] = _Operation(func)
        if known.view:
            return func(*args, **kwargs)
        self._since_check += 1
        if self._since_check >= 256:
            self._since_check = 0
            self.meter.check_patience()
        inputs: list[Tensor] = []
        most, product = 0, 1
        for value in (*args, *kwargs.values()) if kwargs else args:
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Tensor):
                    inputs.append(item)
                    count = item.numel()
                    most, product = max(most, count), product * max(count, 1)
        small = bool(inputs) and not known.algebra and most <= _SMALL and (product <= _SMALL**2 or not known.pointwise)
        if small and not known.name.startswith(("new_", "repeat")):
            self._count("", 0.0, 3.0 * most * inputs[0].element_size(), inputs)
            result = func(*args, **kwargs)
        else:
            result = self._weighed(func, known, inputs, args, kwargs)
        if known.puzzling and not self.real:
            _finite(result)
        if known.name in _FACTORS and not self.real and bool(result[-1].any()):
            _succeed(known.name, result)
        if known.raw and not self.real and _bytes(result) < _TOUCHED:
            result.zero_()  # what should fill it may not be carried out, and what lay there before is anything
        for item in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(item, Tensor) and item.numel() * item.element_size() >= _TRACKED:
                self._follow(item)
        return result

    def _weighed(
        self, func: Any, known: _Operation, inputs: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Count an operation by its shapes; carry it out unless it is large."""
        name = known.name
        kind, flops = _flops(name, [tuple(item.shape) for item in inputs]) if known.algebra else ("", 0.0)
        size = _output_bytes(known, inputs, args)
        # What gathers rows reads no more than it writes.
        moved = 2 * size if name in _GATHERS else size + sum(map(_bytes, inputs))
        if name in _WRITES:  # nor does what puts rows into a table
            moved = 2 * sum(map(_bytes, inputs[1:]))
        self._count(kind, flops, moved, inputs)
        large = flops > LARGE_FLOPS or (moved > LARGE_BYTES and not known.always)
        logical = known.compares or all(item.dtype == torch.bool for item in inputs)
        if self.real or not large or (inputs and logical):
            return func(*args, **kwargs)
        return _made_up(func, name, args, dict(kwargs), self.draws)

    # ---- counting ---------------------------------------------------------------------------------------------------

    def _count(self, kind: str, flops: float, moved: float, inputs: list[Tensor]) -> None:
        if self.meter.muted:
            return
        counts, scale = self.meter.counts, self.meter.scale
        counts["ops"] = counts["ops"] + 1
        double = "other"
        for item in inputs:
            if item.dtype == torch.float64:
                double = "float64"
                break
        key, amount = (f"{kind}.{double}", flops) if flops > _BUSY * moved else (f"bytes.{double}", moved)
        counts[key] = counts[key] + scale * amount

    # ---- memory -----------------------------------------------------------------------------------------------------

    def _follow(self, tensor: Tensor) -> None:
        """Note a new tensor's bytes until its storage is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if storage.nbytes() < _TRACKED or key in self._known:
            return
        size = float(storage.nbytes())
        if self.tokens is not None and tensor.shape[-2:] == self.tokens[:2]:
            size *= self.tokens[2] / self.tokens[0]
        self._known.add(key)
        kind = "float64" if tensor.dtype == torch.float64 else "other"
        self.meter.hold(size, kind)
        weakref.finalize(storage, self._freed, key, size, kind).atexit = False

    def _freed(self, key: int, size: float, kind: str) -> None:
        self._known.discard(key)
        self.meter.hold(-size, kind)


def _bytes(tensor: Tensor) -> float:
    return float(math.prod(tensor.shape) * tensor.element_size())


def _flops(name: str, shapes: list[tuple[int, ...]]) -> tuple[str, float]:
    """Return the kind of matrix algebra and its floating-point operations; 0 for anything else."""
    name = name.rstrip("_")
    if name in _PRODUCTS:
        left, right = shapes[1:3] if name.startswith(("add", "badd")) else shapes[:2]
        return "mm", 2.0 * math.prod(left) * (right[-1] if len(right) > 1 else 1)
    if name == "linalg_cholesky_ex":
        return "cholesky", math.prod(shapes[0]) * shapes[0][-1] / 3
    if name in ("cholesky_solve", "_cholesky_solve_helper"):
        return "triangular", 2.0 * math.prod(shapes[0]) * shapes[1][-1]
    if name in ("linalg_solve_triangular", "triangular_solve"):
        factor, other = shapes[:2] if name.startswith("linalg") else shapes[1::-1]
        return "triangular", 1.0 * factor[-1] * math.prod(other)
    if name == "_linalg_eigh":
        return "eigh", 1.0 * math.prod(shapes[0]) * shapes[0][-1]
    if name == "_linalg_svd":
        return "eigh", 3.0 * math.prod(shapes[0]) * min(shapes[0][-2:])
    if name in ("linalg_lu_factor_ex", "_linalg_solve_ex", "linalg_inv_ex", "linalg_qr"):
        return "mm", 2.0 * math.prod(shapes[0]) * min(shapes[0][-2:])
    if name.startswith("_scaled_dot_product") and "backward" not in name:
        return "mm", 4.0 * math.prod(shapes[0]) * shapes[1][-2]
    return "", 0.0


def _output_bytes(known: _Operation, inputs: list[Tensor], args: tuple[Any, ...]) -> float:
    """Return the bytes of what an operation will write, estimated before it runs."""
    name = known.name
    if not inputs:
        return _asked(args) * 4.0
    width = max(item.element_size() for item in inputs)
    if name in _GATHERS:
        source, *rest = inputs
        rows = max((item.numel() for item in rest if not item.is_floating_point()), default=1)
        inner = source.shape[len(rest) if name == "index" else 1 :]
        return float(rows) * (1 if name == "gather" else math.prod(inner)) * source.element_size()
    if known.pointwise and len(inputs) > 1:
        return math.prod(_broadcast([tuple(item.shape) for item in inputs])) * width
    if name in ("new_zeros", "new_empty", "new_ones", "new_full"):
        return _asked(args[1:]) * width
    if name in ("mm", "bmm"):
        return math.prod((*inputs[0].shape[:-1], inputs[1].shape[-1])) * width
    if name == "cat":
        return float(sum(map(_bytes, inputs)))
    if name == "_to_copy":
        return math.prod(inputs[0].shape) * 8.0
    return 0.0 if name in _REDUCES else max(map(_bytes, inputs))


def _broadcast(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that several shapes are broadcast to (`torch.broadcast_shapes` imports PyTorch's compiler)."""
    axes = max(map(len, shapes))
    padded = [(1,) * (axes - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) if min(sizes) else 0 for sizes in zip(*padded, strict=True))


def _asked(args: tuple[Any, ...]) -> float:
    """Numbers that a factory such as `zeros([n, m])` was asked for."""
    for item in args:
        if isinstance(item, (list, tuple)) and all(isinstance(size, int) for size in item):
            return float(math.prod(item))
    return float(args[0]) if args and isinstance(args[0], int) else 1.0


def _finite(value: Any) -> None:
    if isinstance(value, Tensor) and value.is_floating_point() and value.numel() * 8 < LARGE_BYTES:
        torch.nan_to_num_(value, nan=0.0, posinf=1.0, neginf=-1.0)


def _made_up(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], draws: torch.Generator | None) -> Any:
    """Return a result of the right shapes and types without computing it; one that is written in place stays."""
    written = _written(func, args, kwargs)
    if written is not None:
        return written
    try:
        shapes = func(*tree_map(_as_meta, args), **{**tree_map(_as_meta, kwargs), **_on_meta(func, kwargs)})
    except (RuntimeError, NotImplementedError, TypeError):  # an operation that cannot say its shape without running
        return func(*args, **kwargs)
    result = tree_map(_empty, shapes)
    if name in _FACTORS:
        _succeed(name, result)
    elif name == "_linalg_eigh":
        result[0].fill_(1.0)
        _identity(result[1])
    elif isinstance(result, Tensor) and result.is_floating_point() and result.numel() <= _FEW:
        result.copy_(torch.rand(result.shape, generator=draws) + 0.05) if draws is not None else result.fill_(1.0)
    return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operation writes into, where it does, as its result; None for one that makes new tensors."""
    if not func._schema.is_mutable:
        return None
    found = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[number] if number < len(args) else None)
            found.append(value)
    if not func._schema.returns:
        return ()
    return found[0] if len(func._schema.returns) == 1 else tuple(found)


def _on_meta(func: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    takes = any(argument.name == "device" for argument in func._schema.arguments)
    factory = not any(isinstance(argument.type, torch.TensorType) for argument in func._schema.arguments)
    return {"device": torch.device("meta")} if takes and (factory or "device" in kwargs) else {}


def _as_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def _empty(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    fresh = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype)
    if fresh.untyped_storage().nbytes() < _TOUCHED:
        fresh.zero_()
    return fresh


def _succeed(name: str, result: tuple[Tensor, ...]) -> None:
    """Make a factorisation's results those of an identity (of all matrices, where there are several)."""
    *parts, failed = result
    failed.zero_()
    if name == "_linalg_solve_ex":  # the solution goes first
        parts.pop(0).zero_()
    for part in parts:
        if part.is_floating_point():
            _identity(part.zero_())
        else:  # pivots: no row changes its place
            part.copy_(torch.arange(1, part.shape[-1] + 1))


def _identity(matrix: Tensor) -> None:
    matrix.diagonal(dim1=-2, dim2=-1).fill_(1.0)
