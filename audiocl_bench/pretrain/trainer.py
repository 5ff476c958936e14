"""The training loop: steps, checkpoints, resume, the loss curve.

A run can be stopped at any step and continued; on a CPU it then ends with the same bytes as an unbroken one, as long as
the number of threads stays the same. Nothing but the step decides what a step does: learning rate, decay, clips, masks
and noise are functions of (recipe, step).
"""

from __future__ import annotations

import copy
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from audiocl_bench import files, seeding
from audiocl_bench.backbones import eat
from audiocl_bench.backbones.eat import MEL_PATCHES, PATCH
from audiocl_bench.errors import CheckpointError, ConfigError, ResultsError
from audiocl_bench.pretrain import curve, objectives
from audiocl_bench.pretrain.batches import Batch, Clips, Loader, Part, fingerprint
from audiocl_bench.pretrain.network import Learner, follow
from audiocl_bench.pretrain.recipe import Recipe, ema_decay, rate

CHECKPOINT, CURVE, PICTURE = "checkpoint.pt", "curve.csv", "curve.png"
FORMAT = 1
_PREPARERS = 4  # threads that make batches for a GPU; a CPU needs its cores for the network

_Measure = Callable[[Part, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
_Measured = tuple[Tensor, dict[str, Tensor], Sequence[Tensor | None]]
End = Literal["done", "time", "interrupt", "terminate"]


class Watcher(Protocol):
    """Who is told about progress."""

    def started(self, step: int, steps: int) -> None:
        """The run begins, or continues after `step` of `steps`."""

    def stepped(self, step: int, clips_per_second: float, parts: dict[str, float]) -> None:
        """`step` steps are done; speed and losses are those of the last row of the curve."""

    def message(self, text: str) -> None:
        """One line for the user."""


class Silent:
    """A watcher that shows nothing."""

    def started(self, step: int, steps: int) -> None:
        """Show nothing."""

    def stepped(self, step: int, clips_per_second: float, parts: dict[str, float]) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a piece of a run ended.

    Attributes:
        step: steps done so far.
        steps: steps of the whole run.
        end: "done"; or stopped by the "time" limit, by Ctrl-C ("interrupt"), by SIGTERM ("terminate").
        clips: clips that this piece learned from; seconds: what its steps took.
    """

    step: int
    steps: int
    end: End
    clips: int
    seconds: float


@dataclass
class _Sums:
    """Sums of what a row of the curve will show."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            total = self.totals.get(name)
            self.totals[name] = value.double() if total is None else total + value.double()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.totals.items()}


class Trainer:
    """One pre-training run in a folder.

    Args:
        recipe: what is asked for.
        pack: prepared clips.
        folder: where checkpoint, curve and picture go.
        device: CPU or CUDA.
        watcher: who is told about progress.

    Attributes:
        learner: student, decoder and heads.
        step: steps done.

    Raises:
        ConfigError: recipe and pack do not fit together.
        CorpusError: the pack is empty.
    """

    def __init__(
        self,
        recipe: Recipe,
        pack: Clips,
        folder: Path,
        *,
        device: torch.device | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.recipe, self.folder, self.watcher = recipe, folder, watcher or Silent()
        self.device = device or torch.device("cpu")
        on_gpu = self.device.type == "cuda"
        choice = recipe.run.compile
        self._compiled = choice == "yes" or (choice == "auto" and on_gpu)
        self._loader = Loader(recipe, pack, static=self._compiled)
        self._pack = fingerprint(pack)
        teacher = pack.teacher
        seed, objective = recipe.run.seed, recipe.objective
        width = None if teacher is None else int(teacher["dim"])
        self.learner = Learner(recipe.model, objective, seed=seed, teacher_dim=width).to(self.device)
        self._teacher: eat.EAT | None = None
        if objective.eat_share > 0:
            self._teacher = copy.deepcopy(self.learner.student).requires_grad_(False)
        wanted = recipe.run.precision
        self._half = wanted == "bfloat16" or (wanted == "auto" and on_gpu)
        if on_gpu:
            torch.set_float32_matmul_precision("high")
        optimiser = recipe.optimiser
        self._optimiser = torch.optim.AdamW(
            self.learner.groups(optimiser.weight_decay),
            lr=optimiser.lr,
            betas=(optimiser.beta1, optimiser.beta2),
            eps=optimiser.eps,
            fused=True,
        )
        self._eat_loss: Callable[..., Any] = objectives.eat_loss
        self._distil_loss: Callable[..., Any] = objectives.distil_loss
        if self._compiled:
            # Shapes differ between buckets and, with hiding, over time: each is compiled once.
            torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
            self._eat_loss = torch.compile(objectives.eat_loss, dynamic=False)
            self._distil_loss = torch.compile(objectives.distil_loss, dynamic=False)
        self._parameters = list(self.learner.parameters())
        self._lanes = 1 if on_gpu or self._compiled else torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self.step, self._sums, self._seconds = 0, _Sums(), 0.0
        self._stop: End | None = None

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.run.steps

    # ---- the run ----------------------------------------------------------------------------------------------------

    def run(self, *, fresh: bool = False, minutes: float | None = None) -> Outcome:
        """Train to the end, or until the time is over or a signal asks to stop; a checkpoint is written in any case.

        Args:
            fresh: start at step 0 even if there is a checkpoint.
            minutes: stop after so many minutes. The schedule does not know of it.

        Raises:
            CheckpointError: the checkpoint is broken or belongs to another recipe or other clips.
            ConfigError: a loss is no longer finite.
            ResultsError: the folder cannot be written, or another process trains in it.
        """
        begun = time.monotonic()
        with self._alone(), self._listening():
            self._stop = None
            self._open(fresh=fresh)
            self.watcher.started(self.step, self.steps)
            with self._threads():
                clips, seconds = self._loop(begun, minutes)
            curve.draw(curve.read(self.folder / CURVE), self.folder / PICTURE)
        return Outcome(self.step, self.steps, self._stop or "done", clips, seconds)

    def _loop(self, begun: float, minutes: float | None) -> tuple[int, float]:
        """Make steps; return the clips and seconds they took."""
        run = self.recipe.run
        limit = math.inf if minutes is None else begun + 60 * minutes
        clips, row_clips, at_start, saved = 0, 0, self._seconds, self.step
        saved_at = row_at = time.monotonic()
        workers = _PREPARERS if self.device.type == "cuda" else 0
        with self._loader.ahead(self.step, self.steps, workers=workers) as batches:
            while self.step < self.steps and self._stop is None:
                started = time.monotonic()
                batch = next(batches)
                self._advance(batch)
                self.step += 1
                clips, row_clips = clips + batch.clips, row_clips + batch.clips
                last = self.step == self.steps
                row_due = last or self.step % run.log_every == 0
                means = self._checked() if row_due else {}
                now = time.monotonic()
                self._seconds += now - started
                speed = row_clips / max(1e-9, now - row_at)
                if row_due:
                    self._write_row(means, speed)
                    row_clips, row_at = 0, now
                self.watcher.stepped(self.step, speed, means)
                if not last and self._stop is None and now >= limit:
                    self._stop = "time"
                if not last and self._stop is None and now - saved_at >= 60 * run.checkpoint_minutes:
                    self.save()
                    saved_at, saved = time.monotonic(), self.step
        if saved != self.step:
            self.save()
        return clips, self._seconds - at_start

    def _advance(self, batch: Batch) -> None:
        """Make one step."""
        objective, optimiser = self.recipe.objective, self.recipe.optimiser
        for group in self._optimiser.param_groups:
            group["lr"] = rate(optimiser, batch.step, self.steps)
        told: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        gradients: list[list[Tensor | None]] = []
        for part, measure in ((batch.distil, self._distil), (batch.eat, self._eat)):
            if part is None:
                continue
            for share, (loss, parts, gradient) in self._shared_out(part, batch.step, measure):
                losses.append(share * loss)
                gradients.append([None if value is None else share * value for value in gradient])
                for name, value in parts.items():
                    told[name] = told.get(name, torch.zeros((), device=self.device)) + share * value
        for parameter, values in zip(self._parameters, zip(*gradients, strict=True), strict=True):
            known = [value for value in values if value is not None]
            # Summed in a fixed order, whichever thread was done first.
            parameter.grad = sum(known[1:], known[0]) if known else None
        total = torch.stack(losses).sum()
        norm = nn.utils.clip_grad_norm_(self._parameters, optimiser.clip)
        self._optimiser.step()
        if self._teacher is not None:
            decay = ema_decay(objective, batch.step, self.steps)
            follow(list(self._teacher.parameters()), list(self.learner.student.parameters()), decay)
        self._sums.add({"loss": total, **told, "gradient": norm})

    def _shared_out(self, part: Part, step: int, measure: _Measure) -> Iterator[tuple[float, _Measured]]:
        """Yield, per share of a batch's clips, its size in clips (of 1), loss, parts and gradients.

        On a CPU with several threads each takes a share of the clips through the whole network: threads then wait for
        each other once a step and not at every operation, which is quicker, far more so on a busy machine.
        """
        noise = self._noise(part, step) if measure == self._eat else None
        clips = len(part.x)
        if self._pool is None:
            yield 1.0, self._measured(part.to(self.device), noise, measure)
            return
        cuts = [round(clips * index / self._lanes) for index in range(self._lanes + 1)]
        pieces = [slice(first, last) for first, last in itertools.pairwise(cuts) if last > first]
        jobs = [
            self._pool.submit(self._measured, part.cut(piece), _rows(noise, piece, clips), measure) for piece in pieces
        ]
        for piece, job in zip(pieces, jobs, strict=True):
            yield (piece.stop - piece.start) / clips, job.result()

    def _measured(self, part: Part, noise: Tensor | None, measure: _Measure) -> _Measured:
        """Return loss, parts and gradients of some clips."""
        with self._precision():
            loss, parts = measure(part, noise)
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return loss.detach(), parts, gradients

    def _distil(self, part: Part, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        assert part.targets is not None
        return self._distil_loss(
            self.learner, part.x, part.visible, part.keys, part.targets, part.valid, self.recipe.objective
        )

    def _eat(self, part: Part, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        assert part.visible is not None
        assert noise is not None
        return self._eat_loss(
            self.learner, self._teacher, part.x, part.real, part.visible, noise, self.recipe.objective
        )

    def _noise(self, part: Part, step: int) -> Tensor:
        """Draw what stands in the masked cells of every clone."""
        assert part.visible is not None
        objective = self.recipe.objective
        seed = seeding.derive(self.recipe.run.seed, "pretrain", "noise", step)
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (len(part.visible.index), part.x.shape[1] // PATCH * MEL_PATCHES, objective.decoder_dim)
        return torch.randn(shape, generator=generator, device=self.device) * objective.decoder_noise

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Keep the threads that share out a step's clips; no operation is split among threads meanwhile."""
        if self._lanes == 1:
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(self._lanes, initializer=torch.set_num_threads, initargs=(1,)) as self._pool:
            try:
                yield
            finally:
                self._pool = None
                torch.set_num_threads(before)

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._half:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    # ---- the curve --------------------------------------------------------------------------------------------------

    def _checked(self) -> dict[str, float]:
        """Return the means since the last row, having checked that the loss is still finite."""
        means = self._sums.means()
        for name in ("loss", "gradient"):
            if name in means and not math.isfinite(means[name]):
                raise ConfigError(
                    f"{self.recipe.path}: the {name} is no longer finite at step {self.step}: lower lr in [optimiser] "
                    "and start with --fresh."
                )
        return means

    def _write_row(self, means: dict[str, float], speed: float) -> None:
        row = {
            "step": self.step,
            "epoch": (self.step - 1) // self._loader.plan.batches,
            "lr": rate(self.recipe.optimiser, self.step - 1, self.steps),
            "clips_per_second": speed,
            "seconds": self._seconds,
        }
        curve.append(self.folder / CURVE, {**row, **means})
        self._sums = _Sums()

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint: the old file stays until the new one is whole.

        Raises:
            ConfigError: the loss is no longer finite, so the older checkpoint is kept.
            ResultsError: the folder cannot be written.
        """
        self._checked()
        teacher = {} if self._teacher is None else dict(self._teacher.named_parameters())
        content = {
            "format": FORMAT,
            "settings": self.recipe.settings(),
            "pack": self._pack,
            "step": self.step,
            "seconds": self._seconds,
            "lanes": self._lanes,
            "learner": _plain(dict(self.learner.named_parameters())),
            "teacher": _plain(teacher),
            "optimiser": self._optimiser.state_dict()["state"],
            "sums": {
                "totals": {name: float(value) for name, value in self._sums.totals.items()},
                "counts": dict(self._sums.counts),
            },
        }
        with files.atomic_path(self.folder / CHECKPOINT, error=ResultsError) as temporary, temporary.open("wb") as out:
            torch.save(content, out)

    def _open(self, *, fresh: bool) -> None:
        """Continue from the checkpoint, or clear what an older run left."""
        path = self.folder / CHECKPOINT
        if fresh or not path.exists():
            for name in (CHECKPOINT, CURVE, PICTURE):
                (self.folder / name).unlink(missing_ok=True)
            return
        self.restore()
        curve.cut(self.folder / CURVE, self.step)

    def restore(self) -> None:
        """Take over the folder's checkpoint.

        Raises:
            CheckpointError: there is none, it is broken, or it belongs to another recipe or other clips.
        """
        path = self.folder / CHECKPOINT
        content = read_checkpoint(path)
        _check_settings(path, content["settings"], self.recipe.settings())
        if content["pack"] != self._pack:
            raise CheckpointError(
                f"{path} was trained on other clips than those at hand now: use --fresh or another --out."
            )
        if content["lanes"] != self._lanes and content["step"] < self.steps:
            self.watcher.message(
                f"continuing with --threads {self._lanes}, begun with {content['lanes']}: the last bits of the weights "
                "will differ from those of an unbroken run."
            )
        _take(self.learner, content["learner"])
        if self._teacher is not None:
            _take(self._teacher, content["teacher"])
        state = self._optimiser.state_dict()
        self._optimiser.load_state_dict({"state": content["optimiser"], "param_groups": state["param_groups"]})
        self.step, self._seconds = int(content["step"]), float(content["seconds"])
        sums = content["sums"]
        totals = {
            name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in sums["totals"].items()
        }
        self._sums = _Sums(totals, dict(sums["counts"]))

    # ---- other processes and signals --------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes out of the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire(timeout=0)
        except Timeout:
            raise ResultsError(
                f"another process trains in {self.folder}: wait for it or choose another --out."
            ) from None
        except OSError as cause:
            raise ResultsError(files.explain_os_error(cause, self.folder)) from cause
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Turn Ctrl-C and SIGTERM into a stop after the current step; a second one ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ends: dict[int, End] = {signal.SIGINT: "interrupt", signal.SIGTERM: "terminate"}
        before = {number: signal.getsignal(number) for number in ends}

        def ask(number: int, frame: Any) -> None:
            del frame
            self._stop = ends[number]
            signal.signal(number, before[number])

        for number in ends:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is run.

    Raises:
        CheckpointError: it is missing, broken or of another format.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: train first (`audiocl pretrain --config FILE --out FOLDER`).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # a cut or foreign file may fail anywhere inside torch
        raise CheckpointError(f"{path} is a broken checkpoint ({type(cause).__name__}): use --fresh.") from cause
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this version of audiocl: use --fresh or another --out.")
    return content


def _rows(noise: Tensor | None, piece: slice, clips: int) -> Tensor | None:
    """Return the rows of all clones of some clips."""
    if noise is None:
        return None
    clones = len(noise) // clips
    return noise[clones * piece.start : clones * piece.stop]


def _plain(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu() for name, parameter in parameters.items()}


def _take(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy stored parameters into a module, whose names and shapes the settings have fixed."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[name])


def _check_settings(path: Path, stored: dict[str, Any], asked: dict[str, dict[str, Any]]) -> None:
    for table, values in asked.items():
        for name, value in values.items():
            old = stored.get(table, {}).get(name)
            if old != value:
                raise CheckpointError(
                    f"{path} was begun with {name} = {old} in [{table}], but {value} is asked for: use --fresh, "
                    "another --out, or the old value."
                )
