"""The one interface a method has to meet, and what it gets to see: its config, a backbone, one session at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from audiocl_bench import seeding
from audiocl_bench.config import MethodConfig, setting
from audiocl_bench.errors import ConfigError, DataAccessError, MethodError
from audiocl_bench.ledger import mark
from audiocl_bench.readout import Readout, ReadoutConfig

if TYPE_CHECKING:
    from audiocl_bench.backbones.base import Backbone

__all__ = [
    "Card",
    "Clips",
    "ClosedFormMethod",
    "Context",
    "LazyClips",
    "Method",
    "MethodConfig",
    "ReadoutConfig",
    "Session",
    "SilentReporter",
    "State",
    "StreamInfo",
    "kept_bytes",
    "register",
    "require_storable",
    "setting",
]

State = dict[str, Any]

_READ_TOGETHER = 256  # clips of a session that are decoded together into its cache


@dataclass(frozen=True)
class Clips:
    """A batch of clips as the backbone takes them.

    Attributes:
        mel: normalised log-mel [B, T, M], float32, on the run's device. No label, session or file name travels with it.
            The batches of a run decode it when it is first looked at.
        index: positions [B] of training clips within their session, for caches of per-clip results; None at test.
        query: f_0(x) of these clips [B, D], where somebody gave it; else None (see `Method.queries`).
    """

    mel: Tensor
    index: Tensor | None = None
    query: Tensor | None = None

    def __len__(self) -> int:
        return int(self.mel.shape[0])

    def stored(self, readout: Readout) -> Tensor | None:
        """Return what the feature bank has of these clips [B, width], or None where there is no bank."""
        del readout
        return None


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LazyClips(Clips):
    """A batch whose log-mels are decoded when they are first looked at, and whose features may lie in the bank."""

    def __init__(
        self,
        mel: Tensor | Callable[[], Tensor],
        index: Tensor | None = None,
        query: Tensor | None = None,
        *,
        count: int | None = None,
        stored: Callable[[Readout], Tensor | None] | None = None,
    ) -> None:
        """Take the log-mels [B, T, M] or what loads them; `count` is B, where it is not to be had from `mel`."""
        for name, value in (("index", index), ("query", query), ("_mel", mel), ("_count", count), ("_stored", stored)):
            object.__setattr__(self, name, value)

    @property  # type: ignore[misc]
    def mel(self) -> Tensor:
        """Normalised log-mel [B, T, M]; decoded now if nobody looked before."""
        held: Tensor | Callable[[], Tensor] = vars(self)["_mel"]
        if isinstance(held, Tensor):
            return held
        loaded = held()
        object.__setattr__(self, "_mel", loaded)
        return loaded

    def __len__(self) -> int:
        count: int | None = vars(self)["_count"]
        return super().__len__() if count is None else count

    def stored(self, readout: Readout) -> Tensor | None:
        """Return features [B, width] out of the feature bank, which computes what is missing; None without one."""
        find: Callable[[Readout], Tensor | None] | None = vars(self)["_stored"]
        return None if find is None else find(readout)


@dataclass(frozen=True)
class StreamInfo:
    """What a method may know of the whole stream before it starts."""

    benchmark: str
    num_sessions: int
    num_classes: int
    first_session_epochs: int


@dataclass(frozen=True)
class Card:
    """What a reader should know of a method before running it; docs/methods.md is made of these.

    Attributes:
        paper: authors, venue, official code.
        trains: what learns by gradient, and when.
        keeps: what is kept between sessions.
        deviations: where the code departs from its source, each with the reason.
    """

    paper: str
    trains: str
    keeps: str
    deviations: tuple[str, ...] = ()


class Reporter(Protocol):
    """Where a method's progress and diagnostics go."""

    def epoch(self, stage: str, epoch: int, epochs: int, clips: int, loss: float) -> None:
        """Report one finished pass over `clips` clips of a training stage, with its mean loss."""

    def note(self, name: str, value: Any) -> None:
        """Record a diagnostic of the current session (a number, text, or list of them) in the results."""

    def trainable(self, parameters: int) -> None:
        """Report how many parameters are being trained; the session's maximum is recorded."""


class SilentReporter:
    """Keep notes in a dictionary and show nothing; for tests and for use as a library."""

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.most_trainable = 0

    def epoch(self, stage: str, epoch: int, epochs: int, clips: int, loss: float) -> None:
        """Ignore progress."""

    def note(self, name: str, value: Any) -> None:
        """Keep the note."""
        self.notes[name] = value

    def trainable(self, parameters: int) -> None:
        """Keep the maximum."""
        self.most_trainable = max(self.most_trainable, parameters)


@dataclass(frozen=True)
class Context:
    """The run a method lives in: its seed, stream facts, device and reporter.

    `faster` makes what surrounds the forward pass of every training step on clips; `training.faster` says what it is.
    """

    seed: int
    stream: StreamInfo
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Reporter = field(default_factory=SilentReporter)
    faster: Callable[[], AbstractContextManager[Any]] = nullcontext

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a torch generator seeded by (run seed, purpose). Name the session in `purpose` where draws repeat."""
        return seeding.torch_generator(self.seed, *purpose)


class Session:
    """The training clips of one session, readable until the runner closes it.

    Attributes:
        index: zero-based session number t.
        classes: labels that appear in this session, in arrival order (C_t).
        num_known: classes seen before this session (K_t).
        num_seen: classes seen including this session (S_t).
        num_clips: number of training clips (N_t).
    """

    def __init__(
        self,
        index: int,
        classes: tuple[int, ...],
        num_known: int,
        labels: np.ndarray,
        read: Callable[[np.ndarray], Tensor],
        device: torch.device,
        *,
        cache_bytes: int = 1 << 30,
        stored: Callable[[np.ndarray, Readout], Tensor | None] | None = None,
        numbers: np.ndarray | None = None,
    ) -> None:
        """Open a session over `len(labels)` clips.

        Args:
            index, classes, num_known: see the class.
            labels: of every clip.
            read: positions -> normalised log-mel [B, T, M].
            device: where batches go.
            cache_bytes: log-mels of the whole session are kept in memory if they take at most this.
            stored: positions, readout -> features of the pretrained network [B, width], or None; the feature bank.
            numbers: a number for every clip, unique within the run, so that repeated work on it can be counted.
        """
        self.index = index
        self.classes = classes
        self.num_known = num_known
        self.num_seen = num_known + len([c for c in classes if c >= num_known])
        self.num_clips = len(labels)
        self._labels: Tensor | None = torch.from_numpy(np.asarray(labels, dtype=np.int64).copy())
        self._read: Callable[[np.ndarray], Tensor] | None = read
        self._device = device
        self._stored = stored
        self._numbers = numbers
        self._cache: Tensor | None = None
        self._cache_bytes = cache_bytes
        self._on_close: list[Callable[[], None]] = []
        self.clips_handed_out = 0

    @property
    def labels(self) -> Tensor:
        """Labels of the session's clips, int64 [N_t]."""
        if self._labels is None:
            raise self._closed()
        return self._labels

    def batches(
        self, batch_size: int, *, shuffle: torch.Generator | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Clips, Tensor]]:
        """Iterate once over the session's clips.

        Args:
            batch_size: clips per batch, at least 1.
            shuffle: generator of the order; None keeps the stored order.
            drop_last: leave out a last, smaller batch.

        Yields:
            (Clips with mel [B, T, M], labels int64 [B]), both on the run's device. Clips count as handed out whether
            or not their log-mels are looked at.

        Raises:
            DataAccessError: the session has been closed.
            ConfigError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, but it must be at least 1.")
        order = torch.arange(self.num_clips) if shuffle is None else torch.randperm(self.num_clips, generator=shuffle)
        for start in range(0, self.num_clips, batch_size):
            rows = order[start : start + batch_size]
            if drop_last and len(rows) < batch_size:
                return
            labels = self.labels[rows].to(self._device)
            self.clips_handed_out += len(rows)
            yield self.clips(rows), labels

    def clips(self, rows: Tensor) -> Clips:
        """Return the clips at these positions [B] as a batch, outside the ledger of clips handed out: for caches."""
        return LazyClips(partial(self._mel, rows), rows, count=len(rows), stored=partial(self._features, rows))

    def numbers(self, rows: Tensor) -> np.ndarray | None:
        """Return the numbers by which the run counts work on the clips at these positions; None if it does not."""
        return None if self._numbers is None else self._numbers[rows.numpy()]

    def _mel(self, rows: Tensor) -> Tensor:
        return mark(self._decoded(rows), self.numbers(rows))

    def _decoded(self, rows: Tensor) -> Tensor:
        if self._read is None:
            raise self._closed()
        if self._cache is None:
            first = self._read(rows.numpy())
            per_clip = first[0].numel() * first.element_size()
            if per_clip * self.num_clips > self._cache_bytes:
                return first.to(self._device)
            kept = first.new_empty(self.num_clips, *first.shape[1:])
            for part in torch.arange(self.num_clips).split(_READ_TOGETHER):  # reading takes room of its own
                kept[part] = self._read(part.numpy())
            self._cache = kept
        return self._cache[rows].to(self._device)

    def _features(self, rows: Tensor, readout: Readout) -> Tensor | None:
        if self._read is None:
            raise self._closed()
        return None if self._stored is None else self._stored(rows.numpy(), readout)

    def on_close(self, drop: Callable[[], None]) -> None:
        """Have something dropped when the session closes."""
        self._on_close.append(drop)

    def close(self) -> None:
        """Make the clips and labels unreachable; any later access raises `DataAccessError`."""
        self._read = self._labels = self._cache = self._stored = None
        while self._on_close:
            self._on_close.pop()()

    def _closed(self) -> DataAccessError:
        return DataAccessError(
            f"session {self.index} is closed: a method may read only the clips of the session it is learning."
        )


class Method(ABC):
    """A class-incremental learner. The runner calls `learn` once per session, in order, then `encode` and `classify`.

    Draws come from `context.generator`. PyTorch's global generator, which a new layer or dropout uses, is seeded by the
    runner when a method is built and before every session, so that these repeat (and resume) exactly too.

    Class attributes:
        name: set by `register`.
        source_hash: SHA-256 of the source file of a method loaded by path, so that an edited method makes new runs.
        Config: the frozen dataclass of its settings.
        card: where it comes from and what it keeps, for the documentation; plugins may leave it out.
        takes_whole_stream: True only for joint training, which sees all sessions as one.

    Attributes:
        readout: what `query` reads; a method with settings for it sets its own.
        leaks_across_batch: True for a deliberately leaky reproduction of published code; such runs are marked.
    """

    name: ClassVar[str] = ""
    source_hash: ClassVar[str] = ""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    card: ClassVar[Card | None] = None
    takes_whole_stream: ClassVar[bool] = False
    leaks_across_batch: bool = False

    def __init__(self, config: Any, backbone: Backbone, context: Context) -> None:
        """Build the method on its own copy of the pretrained `backbone` (the method may change it)."""
        self.config = config
        self.backbone = backbone
        self.context = context
        self.encoder_version = 0
        self.num_seen = 0
        self.readout = Readout.of(backbone)

    @abstractmethod
    def learn(self, session: Session) -> None:
        """Learn one session from its clips and labels only."""

    @abstractmethod
    def encode(self, batch: Clips) -> Tensor:
        """Return features [B, D]. Row i must not depend on the other rows; no gradient is kept."""

    @abstractmethod
    def classify(self, features: Tensor) -> Tensor:
        """Return scores [B, S_t] over the classes seen so far; row i must not depend on the other rows."""

    @torch.no_grad()
    def query(self, mel: Tensor) -> Tensor:
        """Return `readout`'s features f_0(x) [B, D] of the network as it was pretrained, for log-mels [B, T, M].

        A method that changes its backbone has to undo that here. In a run, `queries` asks the feature bank instead,
        unless a method overrides this with something else; the audits always come here.
        """
        return self.readout(self.backbone, mel)

    def queries(self, batch: Clips) -> Tensor:
        """Return f_0(x) [B, D] of a batch: given with it, or kept by the feature bank, else computed by `query`."""
        if batch.query is not None:
            return batch.query
        stored = batch.stored(self.readout) if type(self).query is Method.query else None
        return self.query(batch.mel) if stored is None else stored

    def session_queries(self, session: Session, batch_size: int = 64) -> Tensor:
        """Return f_0(x) [N_t, D] of a session's clips in stored order (see `Clips.index` and `queries`)."""
        return torch.cat([self.queries(clips) for clips, _ in session.batches(batch_size)])

    @abstractmethod
    def state_dict(self) -> State:
        """Return everything kept between sessions (tensors and plain values), except the pretrained backbone.

        Tensors, numbers, text, and dicts, lists, tuples or sets of them. The runner resumes from it and counts its
        bytes, so what is not in here is lost on resume.
        """

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned, on a freshly built method."""


class ClosedFormMethod(Method):
    """A method whose head is fitted in closed form from statistics: adapt the encoder (or not), then accumulate.

    Splitting `learn` lets the runner measure drift: with the final encoder it resets the statistics, accumulates all
    sessions again and compares ("fresh" against "stored" accuracy).
    """

    def learn(self, session: Session) -> None:
        """Adapt the encoder on this session where the method does so, then add its statistics to the head."""
        self.adapt(session)
        self.num_seen = session.num_seen
        self.accumulate(session)

    def adapt(self, session: Session) -> None:
        """Change the encoder on this session (bump `encoder_version` if it changed). Default: frozen, nothing."""
        del session

    @abstractmethod
    def accumulate(self, session: Session) -> None:
        """Add this session's feature statistics to the head, in one pass over its clips."""

    @abstractmethod
    def reset_statistics(self) -> None:
        """Forget the head's statistics and keep the encoder."""

    @torch.no_grad()
    def read(self, batch: Clips) -> Tensor:
        """Return `readout`'s features [B, D]: of the network as it is now, or f_0(x) while nothing was adapted."""
        return self.queries(batch) if self.encoder_version == 0 else self.readout(self.backbone, batch.mel)

    @torch.no_grad()
    def session_features(self, session: Session, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Encode a session once: (features [N_t, D], labels [N_t]) in stored order."""
        pairs = [(self.encode(clips), labels) for clips, labels in session.batches(batch_size)]
        return torch.cat([f for f, _ in pairs]), torch.cat([y for _, y in pairs])


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Name a method class; `audiocl run --method NAME` finds it once its module is imported.

    Built-in and outside methods use the same decorator; packages also declare an entry point in `audiocl.methods`.
    """

    def apply(cls: type[Method]) -> type[Method]:
        cls.name = name
        from audiocl_bench import registry

        registry.add(name, cls)
        return cls

    return apply


_PLAIN = (bool, int, float, str, bytes, type(None))


def require_storable(state: Any, *, owner: str, where: str = "state_dict()") -> None:
    """Refuse, after the first session, a state that a checkpoint could not give back or whose bytes cannot be counted.

    Raises:
        MethodError: something in it is no tensor, plain value, or dict, list, tuple or set of them.
    """
    if isinstance(state, Tensor) or type(state) in _PLAIN:
        return
    if isinstance(state, dict):
        for key, item in state.items():
            require_storable(key, owner=owner, where=f"a key of {where}")
            require_storable(item, owner=owner, where=f"{where}[{key!r}]")
    elif type(state) in (list, tuple, set):
        for number, item in enumerate(state):
            require_storable(item, owner=owner, where=f"{where}[{number}]")
    else:
        raise MethodError(
            f"method {owner}: {where} is a {type(state).__module__}.{type(state).__qualname__}, which a checkpoint "
            "cannot hold: use tensors, numbers, text, or dicts, lists and tuples of them."
        )


def kept_bytes(state: Mapping[str, Any]) -> int:
    """Return the bytes that a state really holds: tensors and arrays by their storage, plain values by 8 bytes each.

    A tensor that appears twice (shared storage) counts once.
    """
    seen: set[int] = set()

    def count(value: Any) -> int:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() in seen and storage.nbytes():
                return 0
            seen.add(storage.data_ptr())
            return storage.nbytes()
        if isinstance(value, np.ndarray):
            return value.nbytes
        if isinstance(value, Mapping):
            return sum(count(item) for item in value.values())
        if isinstance(value, (list, tuple, set, frozenset)):
            return sum(count(item) for item in value)
        if isinstance(value, (str, bytes)):
            return len(value)
        return 0 if value is None else 8

    return count(state)
