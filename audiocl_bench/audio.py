"""From an audio file to the log-mel input of a backbone, and the time-frequency masks used while learning.

Two front ends exist. "kaldi" is the filter bank of EAT and SSLAM (their published preprocessing, with the same
resampler); "whisper" is the log-mel of the Whisper encoder (Radford et al. 2022). Both are plain batched torch in
float32 and need neither torchaudio nor transformers.

A log-mel travels raw (before padding and normalisation) and unpadded, so that prepared clips stay small and one
prepared copy serves every normalisation: `FrontEnd.extract` makes it, `FrontEnd.batch` pads and normalises it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from audiocl_bench.errors import AudioError, ConfigError
from audiocl_bench.files import sha256_json

SAMPLE_RATE = 16_000
"""Rate in hertz of every waveform inside audiocl."""

FRAME_SAMPLES = 400
"""Length of one analysis frame (25 ms)."""

HOP_SAMPLES = 160
"""Step between frames (10 ms)."""

AUDIOSET_MEAN = -4.268
"""Mean of EAT's log-mel over AudioSet, which its pre-training and its frozen features use for all data."""

AUDIOSET_STD = 4.569
"""Standard deviation that belongs to `AUDIOSET_MEAN`."""

ALGORITHM_VERSION = 1
"""Raised whenever `FrontEnd.extract` returns other numbers, so that clips prepared by older code are not reused."""

_WAV_SLACK = 4096  # bytes a WAV header may promise too many: writers that err by a few bytes exist
_WAV_STREAMED = 0x7FFF_0000  # from here on a size stands for "unknown", as tools write when their output is a pipe

_RESAMPLER_WIDTH = 6  # zero crossings of the sinc on each side (torchaudio's default)
_RESAMPLER_ROLLOFF = 0.99
_RESAMPLER_LIMIT = 2**25  # kernel elements; every rate audio is recorded at stays far below

_KALDI_FFT = 512
_KALDI_LOW_HZ = 20.0
_KALDI_PRE_EMPHASIS = 0.97
_KALDI_FLOOR = float(torch.finfo(torch.float32).eps)

_WHISPER_FLOOR = 1e-10
_WHISPER_SILENCE = -10.0  # log10 of the floor: a row that sees zeros only

FrontEndKind = Literal["kaldi", "whisper"]


# ---------------------------------------------------------------------------------------------------------------- files


def load(path: Path) -> Tensor:
    """Read an audio file as 16 kHz mono.

    Any container that libsndfile reads works (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, NIST SPHERE of TIMIT).
    Channels are averaged BEFORE resampling.

    Returns:
        waveform [N], float32; integer formats are scaled to [-1, 1].

    Raises:
        AudioError: no such file, not decodable, cut short, empty, with non-finite samples, at a rate that cannot be
            converted, or shorter than one 25 ms frame.
    """
    samples, rate = _decode(path)
    if len(samples) == 0:
        raise AudioError(f"{path} holds no samples: replace the file or leave it out of the data.")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are not finite numbers (NaN or infinity): export it again.")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    try:
        wave = resample(torch.from_numpy(np.ascontiguousarray(mono)), rate, SAMPLE_RATE)
    except AudioError as cause:
        raise AudioError(f"{path}: {cause}") from cause
    if len(wave) < FRAME_SAMPLES:
        raise AudioError(
            f"{path} lasts {1000 * len(wave) / SAMPLE_RATE:.1f} ms, less than one 25 ms frame: "
            "replace the file or leave it out of the data."
        )
    return wave


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """Return the samples [N, channels] (float32) and the sample rate of a file."""
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a directory: give the path of one audio file.")
        if not path.exists():
            raise AudioError(f"{path} does not exist: check the path, or complete the corpus.")
        if path.stat().st_size == 0:
            raise AudioError(f"{path} is an empty file (0 bytes): copy or download it again.")
        missing = _missing_wav_bytes(path)  # first, because a file that may not be opened is told apart here
        with soundfile.SoundFile(path) as file:
            samples = file.read(dtype="float32", always_2d=True)
            announced, rate = int(file.frames), int(file.samplerate)
    except OSError as cause:
        raise AudioError(
            f"{path} cannot be read ({cause.strerror or cause}): check the permissions and the disk."
        ) from cause
    except (soundfile.SoundFileError, RuntimeError) as cause:
        reason = str(getattr(cause, "error_string", "") or cause).strip().rstrip(".")
        if "does not exist" in reason:  # libsndfile's words for an MP3 without a single frame; the file does exist
            reason = "Format not recognised"
        raise AudioError(
            f"{path} cannot be decoded as audio ({reason}): copy or download it again, or convert it to WAV or FLAC."
        ) from cause
    if len(samples) < announced:
        raise AudioError(
            f"{path} is cut short ({len(samples)} of {announced} samples could be read): copy or download it again."
        )
    if missing > _WAV_SLACK:
        raise AudioError(
            f"{path} is cut short ({missing} bytes fewer than its header promises): copy or download it again."
        )
    return samples, rate


def _missing_wav_bytes(path: Path) -> int:
    """Return how many bytes of its data chunk a WAV file lacks (libsndfile does not say); 0 for other formats."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if struct.unpack("<4s4x4s", file.read(12).ljust(12)) != (b"RIFF", b"WAVE"):
            return 0
        while len(header := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                return 0 if length >= _WAV_STREAMED else max(0, file.tell() + length - size)
            file.seek(length + length % 2, os.SEEK_CUR)
    return 0


# ----------------------------------------------------------------------------------------------------------- resampling


def resample(wave: Tensor, orig: int, new: int) -> Tensor:
    """Change the sample rate with a Hann-windowed sinc, as EAT's preprocessing does (torchaudio's default resampler).

    With a/b the rates divided by their greatest common divisor, output sample j of every block of b is a dot product
    with its own filter, and blocks advance by a input samples: one strided convolution with b output channels.

    Args:
        wave: [..., N] float32.
        orig: rate of `wave` in hertz.
        new: wanted rate in hertz.

    Returns:
        [..., ceil(N * b / a)]; `wave` itself where the rates are equal.

    Raises:
        AudioError: a rate is not positive, or the two rates share so small a divisor that the filters would not fit in
            memory (no usual recording rate does).
    """
    if orig < 1 or new < 1:
        raise AudioError(f"sample rates must be positive, not {orig} and {new} Hz: check the header of the file.")
    if orig == new:
        return wave
    divisor = math.gcd(orig, new)
    a, b = orig // divisor, new // divisor
    half = _resampler_half_width(a, b)
    if b * (2 * half + a) > _RESAMPLER_LIMIT:
        raise AudioError(
            f"a sample rate of {orig} Hz cannot be converted to {new} Hz here: convert it with another tool first, "
            f"for example `ffmpeg -i in.wav -ar {new} out.wav`."
        )
    kernel = _resampler_kernel(a, b).to(wave.device)
    length = wave.shape[-1]
    flat = F.pad(wave.reshape(-1, length), (half, half + a))
    blocks = F.conv1d(flat[:, None], kernel, stride=a)  # [batch, b, blocks]
    merged = blocks.transpose(1, 2).reshape(len(flat), -1)
    kept = -(-b * length // a)
    return merged[:, :kept].reshape(*wave.shape[:-1], kept)


def _resampler_half_width(a: int, b: int) -> int:
    return math.ceil(_RESAMPLER_WIDTH * a / (min(a, b) * _RESAMPLER_ROLLOFF))


@lru_cache(maxsize=8)
def _resampler_kernel(a: int, b: int) -> Tensor:
    """Return the b filters [b, 1, 2 W + a] that turn a input samples into b output samples."""
    base = min(a, b) * _RESAMPLER_ROLLOFF
    half = _resampler_half_width(a, b)
    # Kernels outlive the caller's autograd mode, so they must not be born as inference tensors. Float32 all through,
    # in this order of operations, is what makes the result equal torchaudio's bit for bit.
    with torch.inference_mode(False), torch.no_grad():
        options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        position = torch.arange(-half, half + a, **options)[None, None] / a
        phase = torch.arange(0, -b, -1, **options)[:, None, None] / b
        t = ((phase + position) * base).clamp_(-_RESAMPLER_WIDTH, _RESAMPLER_WIDTH)
        window = torch.cos(t * math.pi / _RESAMPLER_WIDTH / 2).square()
        t = t * math.pi
        sinc = torch.where(t == 0, torch.ones_like(t), t.sin() / t)
        return sinc * (window * (base / a))


# -------------------------------------------------------------------------------------------------------- kaldi log-mel


def remove_mean(wave: Tensor) -> Tensor:
    """Subtract each clip's mean: [N] or [B, N] -> the same shape. Done after resampling, before the filter bank.

    The result does not depend on the number of threads, and equals the reference run on one thread bit for bit.
    """
    # Torch splits a sum with a single result among threads, which moves its last bit; the logarithm magnifies that in
    # near-silent frames (by up to 1e-3). With two results (the same row twice, as a view) each is summed by one thread.
    return wave - wave.expand(2, *wave.shape).mean(dim=-1, keepdim=True)[0]


def kaldi_fbank(wave: Tensor, n_mels: int = 128) -> Tensor:
    """Return the log-mel filter bank of Kaldi with EAT's options (Hann window, no dither, no energy, power spectrum).

    Per 25 ms frame: subtract the frame's mean, pre-emphasise by 0.97, window, 512-point power spectrum, `n_mels`
    triangles between 20 Hz and 8 kHz that are linear on the scale 1127 ln(1 + f / 700), natural logarithm with a floor
    at the float32 epsilon. Only whole frames count: n = 1 + (N - 400) // 160.

    Args:
        wave: [N] or [B, N] at 16 kHz in [-1, 1]; EAT removes the clip's mean first (`remove_mean`).
        n_mels: number of mel bins.

    Returns:
        [n, n_mels] or [B, n, n_mels], float32.

    Raises:
        AudioError: fewer than 400 samples.
    """
    _check_wave(wave)
    power = _clip_by_clip(_kaldi_power, wave)
    energy = power @ _kaldi_mel_bank(n_mels).T.to(wave.device)
    return energy.clamp_min(_KALDI_FLOOR).log()


def _kaldi_power(wave: Tensor) -> Tensor:
    """Return the power spectra [..., n, 257] of the frames of [..., N]."""
    frames = wave.unfold(-1, FRAME_SAMPLES, HOP_SAMPLES)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    frames = (frames - _KALDI_PRE_EMPHASIS * previous) * _hann(periodic=False).to(wave.device)
    # abs().pow(2) and not re^2 + im^2: the two round differently, and the reference takes the modulus.
    return torch.fft.rfft(frames, n=_KALDI_FFT).abs().pow(2.0)


def _clip_by_clip(power: Callable[[Tensor], Tensor], waves: Tensor) -> Tensor:
    """Return `power(waves)`; on a CPU one clip after the other, with the same bits.

    Frames overlap, so a batch of them is much larger than a processor's cache: clip by clip takes half the time.
    """
    if waves.ndim == 1 or waves.device.type != "cpu" or not len(waves):
        return power(waves)
    return torch.stack([power(wave) for wave in waves])


@lru_cache(maxsize=8)
def _kaldi_mel_bank(n_mels: int) -> Tensor:
    """Return the triangles [n_mels, 257]; the bin at 8 kHz has no weight (Kaldi leaves the Nyquist bin out)."""

    def mel(hertz: float) -> float:
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    low, high = mel(_KALDI_LOW_HZ), mel(SAMPLE_RATE / 2)
    step = (high - low) / (n_mels + 1)
    with torch.inference_mode(False), torch.no_grad():
        options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        index = torch.arange(n_mels, **options)[:, None]
        left, centre, right = low + index * step, low + (index + 1.0) * step, low + (index + 2.0) * step
        hertz = torch.arange(_KALDI_FFT // 2, **options) * (SAMPLE_RATE / _KALDI_FFT)
        bins = (1127.0 * (1.0 + hertz / 700.0).log())[None]
        rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
        return F.pad(torch.minimum(rising, falling).clamp_min(0.0), (0, 1))


# ------------------------------------------------------------------------------------------------------ whisper log-mel


def whisper_logmel(wave: Tensor, n_mels: int = 80, *, window: int | None = None) -> Tensor:
    """Return Whisper's log10 mel spectrogram before its clamp to 8 below the maximum.

    Frames are centred: row t sees the samples 160 t - 200 ... 160 t + 199. The start is mirrored, what follows the clip
    is zeros, and rows that would see nothing but those zeros (exactly -10) are not returned.

    Args:
        wave: [N] or [B, N] at 16 kHz in [-1, 1].
        n_mels: number of mel bins (80 for all Whisper sizes up to large-v2).
        window: samples that the clip is cut or zero-padded to, a multiple of 160 and at least 320 (Whisper: 480,000,
            which is 30 s). It matters only to a clip that reaches the window's end: there the signal is mirrored again,
            and the row centred on the end is dropped, so at most window / 160 rows are returned. None: zeros for ever.

    Returns:
        [n, n_mels] or [B, n, n_mels], float32, with n = (N + 199) // 160 + 1 where no window cuts it.

    Raises:
        AudioError: fewer than 400 samples.
        ValueError: `window` is not a multiple of 160, or is below 320.
    """
    _check_wave(wave)
    if window is not None and (window % HOP_SAMPLES or window < 2 * HOP_SAMPLES):
        raise ValueError(f"window is a multiple of {HOP_SAMPLES} samples and at least {2 * HOP_SAMPLES}, not {window}")
    half = FRAME_SAMPLES // 2
    flat = wave.reshape(-1, wave.shape[-1])[:, :window]
    rows = (flat.shape[-1] + half - 1) // HOP_SAMPLES + 1
    if window is not None:
        rows = min(rows, window // HOP_SAMPLES)
    needed = HOP_SAMPLES * (rows - 1) + half  # the samples that the last row reaches to
    mirrored = 0 if window is None else max(0, needed - window)
    flat = F.pad(flat, (0, max(0, needed - mirrored - flat.shape[-1])))
    flat = F.pad(flat[:, None], (half, mirrored), mode="reflect")[:, 0]

    def spectra(padded: Tensor) -> Tensor:
        frames = padded.unfold(-1, FRAME_SAMPLES, HOP_SAMPLES)[..., :rows, :] * _hann(periodic=True).to(wave.device)
        return torch.fft.rfft(frames).abs().pow(2.0)

    power = _clip_by_clip(spectra, flat)
    energy = power @ _slaney_mel_bank(n_mels).T.to(wave.device)
    logmel = energy.clamp_min(_WHISPER_FLOOR).log10()
    return logmel.reshape(*wave.shape[:-1], rows, n_mels)


@lru_cache(maxsize=8)
def _slaney_mel_bank(n_mels: int) -> Tensor:
    """Return the triangles [n_mels, 201] of Slaney's Auditory Toolbox: linear in hertz, each of area 1, 0 to 8 kHz."""
    break_hz, step_hz = 1000.0, 200.0 / 3.0  # linear below 1 kHz (15 mel), logarithmic above
    break_mel, log_step = break_hz / step_hz, math.log(6.4) / 27.0
    top = break_mel + math.log(SAMPLE_RATE / 2 / break_hz) / log_step
    mel = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(mel < break_mel, mel * step_hz, break_hz * np.exp(log_step * (mel - break_mel)))
    left, centre, right = (edges[start : start + n_mels, None] for start in range(3))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, FRAME_SAMPLES // 2 + 1)[None]
    triangles = np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clip(min=0.0)
    with torch.inference_mode(False):
        return torch.from_numpy((triangles * 2.0 / (right - left)).astype(np.float32))


@lru_cache(maxsize=2)
def _hann(*, periodic: bool) -> Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(FRAME_SAMPLES, periodic=periodic, dtype=torch.float32, device="cpu")


def _check_wave(wave: Tensor) -> None:
    if wave.ndim not in (1, 2):
        raise ValueError(f"a waveform has the shape [N] or [B, N], not {list(wave.shape)}")
    if wave.shape[-1] < FRAME_SAMPLES:
        raise AudioError(
            f"a clip of {wave.shape[-1]} samples is shorter than one frame of {FRAME_SAMPLES} samples "
            "(25 ms at 16 kHz): leave it out of the data."
        )


# ----------------------------------------------------------------------------------------------------------- front ends


@dataclass(frozen=True)
class FrontEnd:
    """How a backbone wants its input: which log-mel, how many rows, which normalisation.

    Attributes:
        kind: "kaldi" (EAT, SSLAM) or "whisper".
        n_mels: number of mel bins M.
        frames: number of rows T (10 ms each) of the backbone's input.
        mean: "kaldi" only: mean of the log-mel over the pre-training data.
        std: "kaldi" only: its standard deviation. The defaults 0 and 0.5 leave the log-mel as it is.
    """

    kind: FrontEndKind
    n_mels: int
    frames: int
    mean: float = 0.0
    std: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings that no input could meet (ConfigError)."""
        if self.kind not in get_args(FrontEndKind):
            raise ConfigError(f"front end: kind is one of {', '.join(get_args(FrontEndKind))}, not '{self.kind}'.")
        if self.n_mels < 1:
            raise ConfigError(f"front end: n_mels is at least 1, not {self.n_mels}.")
        least = 2 if self.kind == "whisper" else 1  # whisper's mirrored start is longer than one hop
        if self.frames < least:
            raise ConfigError(f"front end: frames is at least {least}, not {self.frames}.")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ConfigError(f"front end: mean is finite and std above 0, not mean {self.mean} and std {self.std}.")

    @property
    def store_key(self) -> str:
        """Hash (64 hexadecimal digits) of all that changes `extract`; the normalisation is not part of it."""
        return sha256_json(
            {"algorithm": ALGORITHM_VERSION, "kind": self.kind, "n_mels": self.n_mels, "frames": self.frames}
        )

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values, for the provenance of a run."""
        return {
            "kind": self.kind,
            "n_mels": self.n_mels,
            "frames": self.frames,
            "mean": self.mean,
            "std": self.std,
            "sample_rate": SAMPLE_RATE,
            "algorithm": ALGORITHM_VERSION,
        }

    def extract(self, wave: Tensor) -> Tensor:
        """Turn a clip into its raw log-mel, unpadded.

        Kaldi: the mean over the WHOLE clip is removed first, then the clip is cut. Whisper: `frames` also sets the
        window that the waveform is cut or zero-padded to (3,000 rows = 30 s).

        Args:
            wave: [N], 16 kHz mono in [-1, 1].

        Returns:
            [n, M] float32 with n <= frames.

        Raises:
            AudioError: fewer than 400 samples.
        """
        if wave.ndim != 1:
            raise ValueError(f"extract takes one clip [N], not {list(wave.shape)}")
        if self.kind == "whisper":
            return whisper_logmel(wave, self.n_mels, window=HOP_SAMPLES * self.frames)
        # Samples past the last row that is kept cannot change it: leaving them out saves the work on long clips.
        reach = FRAME_SAMPLES + HOP_SAMPLES * (self.frames - 1)
        return kaldi_fbank(remove_mean(wave)[:reach], self.n_mels)

    def fit(self, mels: Sequence[Tensor]) -> Tensor:
        """Stack raw log-mels [n_i, M] to [B, frames, M] float32: cut at the end, or padded there with silence.

        Padding happens in the raw domain, before normalisation: rows of 0 for kaldi (as EAT does, although 0 is loud
        there), rows of -10 (what digital silence gives) for whisper.
        """
        for mel in mels:
            if mel.ndim != 2 or mel.shape[1] != self.n_mels:
                raise ValueError(f"a log-mel has the shape [n, {self.n_mels}], not {list(mel.shape)}")
        fitted = self.silence(len(mels), mels[0].device if len(mels) else torch.device("cpu"))
        for row, mel in zip(fitted, mels, strict=True):
            row[: len(mel)] = mel[: self.frames]
        return fitted

    def silence(self, clips: int, device: torch.device | None = None) -> Tensor:
        """Return what `fit` pads with: raw log-mels [clips, frames, M] of no sound, float32."""
        value = 0.0 if self.kind == "kaldi" else _WHISPER_SILENCE
        return torch.full((clips, self.frames, self.n_mels), value, dtype=torch.float32, device=device)

    def normalise(self, x: Tensor) -> Tensor:
        """Scale fitted raw log-mels [B, frames, M] for the network; the result has the same shape.

        Kaldi: (x - mean) / (2 std). Whisper: each clip is clamped from below to its own maximum - 8, then (x + 4) / 4.
        """
        if self.kind == "kaldi":
            return (x - self.mean) / (2.0 * self.std)
        loudest = x.amax(dim=(-2, -1), keepdim=True)
        return (torch.maximum(x, loudest - 8.0) + 4.0) / 4.0

    def batch(self, mels: Sequence[Tensor]) -> Tensor:
        """Turn raw log-mels [n_i, M] into a backbone's input [B, frames, M]."""
        return self.normalise(self.fit(mels))


# ---------------------------------------------------------------------------------------------------------------- masks


def mask_time_frequency(
    x: Tensor,
    *,
    time_ratio: float,
    freq_ratio: float,
    generator: torch.Generator,
    fill: float | Tensor = 0.0,
    random_width: bool,
) -> Tensor:
    """Overwrite one block of rows and one block of mel bins in every clip.

    With U uniform on [0, 1), drawn anew for each use: a block starts at floor(U (size - width)). Its width is
    floor(U size ratio) where `random_width` (the SpecAugment of EAT's fine-tuning, after Park et al. 2019), else
    round(ratio size) (the perturbation of PACE). Ratio 0 gives no block.

    Each clip takes four numbers from `generator` in turn, whatever the settings, so its blocks do not depend on the
    clips after it.

    Args:
        x: [B, T, M].
        time_ratio: share of rows, in [0, 1].
        freq_ratio: share of mel bins, in [0, 1].
        generator: CPU generator; drawn there and moved, so that every device masks the same cells.
        fill: value of the masked cells; a tensor is broadcast to [B, T, M]. 0 is the data mean of a normalised log-mel.
        random_width: draw the widths, or fix them.

    Returns:
        A new tensor [B, T, M]; `x` is left as it is.

    Raises:
        ConfigError: a ratio lies outside [0, 1].
    """
    if x.ndim != 3:
        raise ValueError(f"log-mels have the shape [B, T, M], not {list(x.shape)}")
    for name, ratio in (("time_ratio", time_ratio), ("freq_ratio", freq_ratio)):
        if not 0.0 <= ratio <= 1.0:
            raise ConfigError(f"mask: {name} lies between 0 and 1, not {ratio}.")
    clips, rows, bins = x.shape
    draws = torch.rand((clips, 4), generator=generator, dtype=torch.float64)
    in_time = _blocks(draws[:, 0], draws[:, 1], rows, time_ratio, random_width=random_width)
    in_freq = _blocks(draws[:, 2], draws[:, 3], bins, freq_ratio, random_width=random_width)
    masked = (in_time[:, :, None] | in_freq[:, None, :]).to(x.device)
    return torch.where(masked, torch.as_tensor(fill, dtype=x.dtype, device=x.device), x)


def _blocks(u_width: Tensor, u_start: Tensor, size: int, ratio: float, *, random_width: bool) -> Tensor:
    """Return one block per clip as booleans [B, size]."""
    width = (u_width * (size * ratio)).floor() if random_width else torch.full_like(u_width, round(ratio * size))
    start = (u_start * (size - width)).floor()
    position = torch.arange(size, dtype=torch.float64)[None]
    return (position >= start[:, None]) & (position < (start + width)[:, None])
