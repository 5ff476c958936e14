"""Audio front ends against the reference implementations' own numbers, closed forms and real recordings."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiocl_bench import audio
from audiocl_bench.audio import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    SAMPLE_RATE,
    FrontEnd,
    kaldi_fbank,
    load,
    mask_time_frequency,
    remove_mean,
    resample,
    whisper_logmel,
)
from audiocl_bench.errors import AudioError, ConfigError
from audiocl_bench.seeding import numpy_generator, torch_generator

Shared = Callable[..., Path]

KALDI_FLOOR = math.log(1.1920929e-7)
STATISTICS = {"audioset": (-4.268, 4.569), "esc50": (-6.627, 5.359), "sc2": (-6.846, 5.565)}
CLIPS = ("exact_256_frames", "short_186_frames", "long_373_frames")
SUM_OF_THE_REFERENCE = 2e-3  # near-silent cells move by this much with the last bit of the reference's clip mean


def noise(samples: int, *, seed: int = 0, scale: float = 0.1, clips: int | None = None) -> Tensor:
    shape = (samples,) if clips is None else (clips, samples)
    return scale * torch.randn(shape, generator=torch_generator(seed, "noise"))


def tone(hertz: float, samples: int, rate: int = SAMPLE_RATE) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples, dtype=torch.float64) / rate).float()


# ---------------------------------------------------------------------------------------------------------------- files


def write(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, **kind: str) -> Path:
    soundfile.write(path, samples, rate, **kind)
    return path


def test_load_scales_integers_and_averages_channels(tmp_path: Path) -> None:
    left, right = np.zeros(800, np.int16), np.zeros(800, np.int16)
    left[:2], right[:2] = (16384, -32768), (0, -32768)
    wave = load(write(tmp_path / "stereo.wav", np.stack([left, right], axis=1)))
    assert wave.dtype == torch.float32
    assert wave.shape == (800,)
    assert wave[:3].tolist() == [0.25, -1.0, 0.0]


def test_load_downmixes_before_it_resamples(tmp_path: Path) -> None:
    stereo = numpy_generator(0, "stereo").uniform(-0.5, 0.5, (4410, 2)).astype(np.float32)
    wave = load(write(tmp_path / "stereo.wav", stereo, 44_100, subtype="FLOAT"))
    assert len(wave) == 1600
    assert torch.equal(wave, resample(torch.from_numpy(stereo.mean(axis=1)), 44_100, SAMPLE_RATE))
    each = torch.stack([resample(torch.from_numpy(stereo[:, c].copy()), 44_100, SAMPLE_RATE) for c in range(2)])
    torch.testing.assert_close(wave, each.mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "PCM_U8"}),
        ("a.flac", {"subtype": "PCM_16"}),
        ("a.WAV", {"format": "NIST", "subtype": "PCM_16"}),  # the container of TIMIT
    ],
)
def test_load_reads_the_containers_of_the_corpora(tmp_path: Path, name: str, kind: dict[str, str]) -> None:
    samples = numpy_generator(0, "samples").uniform(-0.9, 0.9, 1000)
    wave = load(write(tmp_path / name, samples, **kind))
    np.testing.assert_allclose(wave.numpy(), samples, atol=1.01 / 128 if kind["subtype"] == "PCM_U8" else 4e-5)


def expect_error(path: Path, *words: str) -> None:
    with pytest.raises(AudioError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    assert "\n" not in message
    assert message.endswith(".")
    assert ":" in message.removeprefix(str(path))  # what is wrong, then what to do


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    expect_error(tmp_path / "nowhere.wav", "does not exist", "check the path")


def test_load_refuses_a_directory(tmp_path: Path) -> None:
    expect_error(tmp_path, "is a directory", "one audio file")


def test_load_refuses_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    path.touch()
    expect_error(path, "0 bytes", "download it again")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "noextension"])
def test_load_refuses_what_is_not_audio(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"<html>404</html>" * 100)
    expect_error(path, "cannot be decoded", "Format not recognised", "download it again")


def test_load_refuses_a_file_without_samples(tmp_path: Path) -> None:
    expect_error(write(tmp_path / "none.wav", np.zeros(0)), "no samples")


def test_load_refuses_ten_milliseconds(tmp_path: Path) -> None:
    expect_error(write(tmp_path / "short.wav", np.zeros(160)), "10.0 ms", "25 ms frame")


def test_shortest_clip_is_one_frame_after_resampling(tmp_path: Path) -> None:
    assert load(write(tmp_path / "enough.wav", np.zeros(1200), 48_000)).shape == (400,)
    expect_error(write(tmp_path / "less.wav", np.zeros(1197), 48_000), "24.9 ms")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_load_refuses_samples_that_are_not_finite(tmp_path: Path, value: float) -> None:
    samples = np.zeros(1000)
    samples[500] = value
    expect_error(write(tmp_path / "nan.wav", samples, subtype="FLOAT"), "not finite", "export it again")


def test_load_refuses_a_rate_it_cannot_convert(tmp_path: Path) -> None:
    expect_error(write(tmp_path / "odd.wav", np.zeros(16_000), 15_999), "15999 Hz", "ffmpeg")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.flac", {"subtype": "PCM_16"}),
        ("a.ogg", {"format": "OGG", "subtype": "OPUS"}),
        ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ],
)
def test_load_refuses_half_a_file(tmp_path: Path, name: str, kind: dict[str, str]) -> None:
    samples = numpy_generator(0, "samples").uniform(-0.5, 0.5, 16_000)
    path = write(tmp_path / name, samples, **kind)
    assert load(path).shape == (16_000,)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    expect_error(path)


@pytest.mark.parametrize("promised", [2_000 + 6, 0x7FFF_F000, 0xFFFF_FFFF])
def test_load_bears_wav_headers_that_are_a_little_wrong_or_streamed(tmp_path: Path, promised: int) -> None:
    path = write(tmp_path / "a.wav", np.full(1000, 0.25), subtype="PCM_16")
    content = path.read_bytes()
    at = content.index(b"data") + 4
    path.write_bytes(content[:at] + promised.to_bytes(4, "little") + content[at + 4 :])
    assert load(path).tolist() == [0.25] * 1000


def test_load_names_a_file_it_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "locked.wav", np.zeros(1000))

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", refuse)  # file modes do not stop root, as whom tests may run
    expect_error(path, "Permission denied", "check the permissions")


def test_load_real_flac(shared: Shared) -> None:
    first = sorted(shared("data", "ESC-50", "audio").glob("*.flac"))[0]
    samples, rate = soundfile.read(first, dtype="float32")
    assert rate == SAMPLE_RATE
    wave = load(first)
    assert len(wave) == pytest.approx(5 * SAMPLE_RATE, abs=160)
    assert 0 < float(wave.abs().max()) <= 1
    np.testing.assert_array_equal(wave.numpy(), samples)


def test_load_real_opus_at_48_khz(shared: Shared) -> None:
    first = sorted(shared("data", "arabic_speech_commands", "right").glob("*.ogg"))[0]
    with soundfile.SoundFile(first) as file:
        expected = math.ceil(file.frames * SAMPLE_RATE / file.samplerate)
        assert file.subtype == "OPUS"
    wave = load(first)
    assert wave.shape == (expected,)
    assert 0.01 < float(wave.abs().max()) < 2  # Opus may overshoot 1 a little


def test_load_real_wav_is_the_integers_over_32768(shared: Shared) -> None:
    first = sorted(shared("data", "speech_commands_v0.01_sample", "right").glob("*.wav"))[0]
    integers, rate = soundfile.read(first, dtype="int16")
    assert rate == SAMPLE_RATE
    np.testing.assert_array_equal(load(first).numpy(), integers / np.float32(32768))


# ----------------------------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000])
def test_resample_equals_the_reference(shared: Shared, rate: int) -> None:
    oracle = np.load(shared("oracles", "eat", "resample.npz"))
    result = resample(torch.from_numpy(oracle[f"in_{rate}"]), rate, SAMPLE_RATE)
    np.testing.assert_allclose(result.numpy(), oracle[f"out_{rate}"], atol=1e-6, rtol=0)


@given(
    length=st.integers(1, 400),
    orig=st.sampled_from([8_000, 11_024, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000, 192_000]),
    new=st.sampled_from([8_000, 16_000]),
)
@settings(max_examples=50, deadline=None)
def test_resampled_length_rounds_up(length: int, orig: int, new: int) -> None:
    assert resample(torch.zeros(length), orig, new).shape == (math.ceil(length * new / orig),)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resample_keeps_a_tone(rate: int) -> None:
    result = resample(tone(440.0, rate // 2, rate), rate, SAMPLE_RATE)
    middle = slice(500, 7_500)
    torch.testing.assert_close(result[middle], tone(440.0, 8_000)[middle], atol=5e-3, rtol=0)


def test_resample_removes_what_the_new_rate_cannot_hold() -> None:
    result = resample(tone(11_000.0, 24_000, 48_000), 48_000, SAMPLE_RATE)
    assert float(result[500:-500].abs().max()) < 0.02


def test_resample_is_linear_and_batches() -> None:
    batch = noise(900, clips=6).reshape(2, 3, 900)
    result = resample(batch, 44_100, SAMPLE_RATE)
    assert result.shape == (2, 3, 327)
    torch.testing.assert_close(result[1, 2], resample(batch[1, 2], 44_100, SAMPLE_RATE), atol=1e-6, rtol=0)
    sums = resample(2.0 * batch[0, 0] - batch[1, 1], 44_100, SAMPLE_RATE)
    torch.testing.assert_close(sums, 2.0 * result[0, 0] - result[1, 1], atol=1e-6, rtol=0)


def test_resample_at_the_same_rate_changes_nothing() -> None:
    wave = noise(1000)
    assert torch.equal(resample(wave, 44_100, 44_100), wave)


@pytest.mark.parametrize(("orig", "new"), [(0, 16_000), (16_000, -1)])
def test_resample_refuses_rates_that_are_not_positive(orig: int, new: int) -> None:
    with pytest.raises(AudioError, match="must be positive"):
        resample(noise(100), orig, new)


# -------------------------------------------------------------------------------------------------------- kaldi log-mel


def test_kaldi_mel_bank_equals_the_reference(shared: Shared) -> None:
    oracle = np.load(shared("oracles", "eat", "mel_bank_128x256.npy"))
    bank = audio._kaldi_mel_bank(128).numpy()
    np.testing.assert_allclose(bank[:, :256], oracle, atol=1e-6, rtol=0)
    assert not bank[:, 256].any()


@pytest.mark.parametrize("clip", CLIPS)
def test_kaldi_fbank_equals_the_reference(shared: Shared, clip: str) -> None:
    oracle = np.load(shared("oracles", "eat", "preprocess.npz"))
    expected = torch.from_numpy(oracle[f"fbank_{clip}"])
    result = kaldi_fbank(remove_mean(torch.from_numpy(oracle[f"wave_{clip}"])))
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    assert float((result - expected).abs().max()) < SUM_OF_THE_REFERENCE
    loud = expected > -6.0
    assert int(loud.sum()) > 1000
    torch.testing.assert_close(result[loud], expected[loud], atol=1e-5, rtol=0)


@pytest.mark.parametrize("data", list(STATISTICS))
@pytest.mark.parametrize("clip", CLIPS)
def test_network_input_equals_the_reference(shared: Shared, clip: str, data: str) -> None:
    """186 rows are padded, 256 fit, 373 are cut."""
    oracle = np.load(shared("oracles", "eat", "preprocess.npz"))
    mean, std = STATISTICS[data]
    front_end = FrontEnd("kaldi", 128, 256, mean, std)
    result = front_end.batch([front_end.extract(torch.from_numpy(oracle[f"wave_{clip}"]))])
    expected = torch.from_numpy(oracle[f"input256_{data}_{clip}"])[None]
    torch.testing.assert_close(result, expected, atol=SUM_OF_THE_REFERENCE / (2 * std), rtol=0)
    assert float((result - expected).abs().mean()) < 1e-5


def test_official_recording_from_file_to_network_input(shared: Shared) -> None:
    """A 32 kHz WAV: decoding, resampling, filter bank, padding and normalisation in one."""
    oracle = np.load(shared("oracles", "eat", "official_test_input.npz"))
    front_end = FrontEnd("kaldi", 128, 1024, AUDIOSET_MEAN, AUDIOSET_STD)
    mel = front_end.extract(load(shared("oracles", "eat", "official_test.wav")))
    torch.testing.assert_close(mel, torch.from_numpy(oracle["fbank"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(front_end.batch([mel]), torch.from_numpy(oracle["input"][0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_mels", [40, 128])
@pytest.mark.parametrize("samples", [400, 16_000, 50_123])
def test_kaldi_fbank_agrees_with_an_independent_implementation(n_mels: int, samples: int) -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = n_mels
    options.use_energy = False
    wave = remove_mean(noise(samples) + 0.3 * tone(440.0, samples))
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(SAMPLE_RATE, wave.tolist())
    bank.input_finished()
    expected = torch.from_numpy(np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)]))
    result = kaldi_fbank(wave, n_mels)
    assert result.shape == expected.shape
    assert float((result - expected).abs().max()) < 1.5e-3
    assert float((result - expected).abs().mean()) < 3e-5


@given(samples=st.integers(400, 3000))
@settings(max_examples=25, deadline=None)
def test_kaldi_rows_count_whole_frames(samples: int) -> None:
    assert kaldi_fbank(torch.zeros(samples), 8).shape == (1 + (samples - 400) // 160, 8)


def test_kaldi_fbank_of_silence_is_the_floor() -> None:
    assert kaldi_fbank(torch.zeros(1000)).unique().tolist() == pytest.approx([KALDI_FLOOR])


def test_kaldi_filter_without_a_bin_is_always_at_the_floor() -> None:
    assert kaldi_fbank(noise(16_000))[:, 3].unique().tolist() == pytest.approx([KALDI_FLOOR])


@pytest.mark.parametrize("hertz", [250.0, 1000.0, 4000.0])
def test_kaldi_fbank_peaks_where_the_tone_is(hertz: float) -> None:
    def mel(f: float) -> float:
        return 1127.0 * math.log(1.0 + f / 700.0)

    peak = kaldi_fbank(tone(hertz, 8_000)).mean(dim=0).argmax().item()
    step = (mel(8000.0) - mel(20.0)) / 129
    assert mel(20.0) + step * (peak + 1) == pytest.approx(mel(hertz), abs=step)


def test_kaldi_fbank_batches() -> None:
    batch = noise(5_000, clips=3)
    single = torch.stack([kaldi_fbank(remove_mean(wave)) for wave in batch])
    torch.testing.assert_close(kaldi_fbank(remove_mean(batch)), single, atol=1e-5, rtol=0)


def test_louder_by_a_factor_is_a_shift() -> None:
    wave = noise(4_000)
    difference = kaldi_fbank(4.0 * wave) - kaldi_fbank(wave)
    rest = [m for m in range(128) if m != 3]
    torch.testing.assert_close(difference[:, rest], torch.full((23, 127), math.log(16.0)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [100, 30_000, 41_200, 100_001])
def test_remove_mean_does_not_depend_on_threads_or_batch(samples: int) -> None:
    wave = noise(samples) + 0.05
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = wave - wave.mean()
        one = remove_mean(wave)
        torch.set_num_threads(3)
        three, batched = remove_mean(wave), remove_mean(torch.stack([wave, 2 * wave, wave + 1]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, expected)
    assert torch.equal(three, expected)
    assert torch.equal(batched[0], expected)
    assert abs(float(three.double().mean())) < 1e-7


@pytest.mark.parametrize("function", [kaldi_fbank, whisper_logmel])
def test_log_mels_refuse_less_than_a_frame(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AudioError, match="399 samples is shorter than one frame"):
        function(torch.zeros(399))
    with pytest.raises(ValueError, match=r"\[N\] or \[B, N\]"):
        function(torch.zeros(2, 2, 400))


def test_tables_made_in_inference_mode_serve_autograd_later() -> None:
    audio._kaldi_mel_bank.cache_clear()
    audio._resampler_kernel.cache_clear()
    with torch.inference_mode():
        kaldi_fbank(resample(noise(4_000), 8_000, SAMPLE_RATE), 16)
    wave = noise(4_000).requires_grad_()
    kaldi_fbank(resample(wave, 8_000, SAMPLE_RATE), 16).sum().backward()
    assert wave.grad is not None
    assert bool(wave.grad.isfinite().all())


# ------------------------------------------------------------------------------------------------------ whisper log-mel


def whisper_reference(wave: Tensor, seconds: int, n_mels: int = 80) -> Tensor:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels, chunk_length=seconds)
    features = extractor(wave.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="np")["input_features"]
    return torch.from_numpy(np.asarray(features)).transpose(1, 2)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_slaney_mel_bank_equals_the_reference(n_mels: int) -> None:
    transformers = pytest.importorskip("transformers")
    expected = transformers.WhisperFeatureExtractor(feature_size=n_mels).mel_filters.T
    np.testing.assert_allclose(audio._slaney_mel_bank(n_mels).numpy(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("samples", [400, 24_321, 479_999, 480_000, 500_000])
def test_whisper_input_of_thirty_seconds_equals_the_reference(samples: int) -> None:
    wave = noise(samples)
    front_end = FrontEnd("whisper", 80, 3000)
    result = front_end.batch([front_end.extract(wave)])
    torch.testing.assert_close(result, whisper_reference(wave, 30), atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [15_640, 15_641, 15_799, 15_841, 15_959, 15_961, 15_999, 16_000, 16_001, 20_000])
def test_whisper_rows_at_the_end_of_the_window_equal_the_reference(samples: int) -> None:
    """Around the end: zeros follow a clip that stops before it, the mirrored signal one that reaches it."""
    wave = noise(samples, scale=0.5)
    front_end = FrontEnd("whisper", 80, 100)
    result = front_end.batch([front_end.extract(wave)])
    torch.testing.assert_close(result, whisper_reference(wave, 1), atol=1e-4, rtol=0)


def test_whisper_input_of_real_audio_equals_the_reference(shared: Shared) -> None:
    first = sorted(shared("data", "arabic_speech_commands", "yes").glob("*.ogg"))[0]
    wave = load(first)
    front_end = FrontEnd("whisper", 80, 3000)
    result = front_end.batch([front_end.extract(wave)])
    torch.testing.assert_close(result, whisper_reference(wave, 30), atol=1e-4, rtol=0)


@given(samples=st.integers(400, 2000))
@settings(max_examples=25, deadline=None)
def test_whisper_rows_end_with_the_clip(samples: int) -> None:
    """The last row sees the clip's last sample; one more would not."""
    rows = len(whisper_logmel(torch.zeros(samples), 8))
    assert 160 * (rows - 1) - 200 < samples <= 160 * rows - 200


def test_whisper_rows_left_out_are_silence() -> None:
    wave = noise(3_000)
    short = whisper_logmel(wave)
    padded = whisper_logmel(torch.cat([wave, torch.zeros(3_000)]))
    torch.testing.assert_close(padded[: len(short)], short, atol=1e-5, rtol=0)
    assert padded[len(short) :].unique().tolist() == [-10.0]


def test_whisper_batches() -> None:
    batch = noise(3_000, clips=3)
    single = torch.stack([whisper_logmel(wave, window=3_200) for wave in batch])
    torch.testing.assert_close(whisper_logmel(batch, window=3_200), single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [160, 1000])
def test_whisper_refuses_a_window_of_broken_rows(window: int) -> None:
    with pytest.raises(ValueError, match="multiple of 160"):
        whisper_logmel(noise(800), window=window)


# ----------------------------------------------------------------------------------------------------------- front ends


@pytest.mark.parametrize(("kind", "silence"), [("kaldi", 0.0), ("whisper", -10.0)])
@given(lengths=st.lists(st.integers(1, 12), max_size=4), frames=st.integers(2, 10))
@settings(max_examples=25, deadline=None)
def test_fit_pads_or_cuts(kind: audio.FrontEndKind, silence: float, lengths: list[int], frames: int) -> None:
    mels = [torch.full((n, 3), float(i + 1), dtype=torch.float16) for i, n in enumerate(lengths)]
    fitted = FrontEnd(kind, 3, frames).fit(mels)
    assert fitted.shape == (len(lengths), frames, 3)
    assert fitted.dtype == torch.float32
    for i, n in enumerate(lengths):
        assert bool((fitted[i, :n] == i + 1).all())
        assert bool((fitted[i, n:] == silence).all())


def test_fit_refuses_another_number_of_bins() -> None:
    with pytest.raises(ValueError, match=r"\[n, 3\], not \[5, 4\]"):
        FrontEnd("kaldi", 3, 8).fit([torch.zeros(5, 3), torch.zeros(5, 4)])


def test_kaldi_normalise_by_hand() -> None:
    front_end = FrontEnd("kaldi", 2, 2, mean=-4.0, std=2.0)
    x = torch.tensor([[[-4.0, 0.0], [4.0, -8.0]]])
    assert front_end.normalise(x).tolist() == [[[0.0, 1.0], [2.0, -1.0]]]
    assert torch.equal(FrontEnd("kaldi", 2, 2).normalise(x), x)


@pytest.mark.parametrize(("data", "value"), [("audioset", 0.4671), ("esc50", 0.6183), ("sc2", 0.6151)])
def test_kaldi_padding_after_normalisation(data: str, value: float) -> None:
    front_end = FrontEnd("kaldi", 4, 6, *STATISTICS[data])
    assert front_end.batch([torch.zeros(0, 4)]).unique().tolist() == pytest.approx([value], abs=5e-5)


def test_whisper_normalise_by_hand_and_clip_by_clip() -> None:
    x = torch.tensor([[[4.0, -10.0], [-4.0, 0.0]], [[-6.0, -10.0], [-20.0, -10.0]]])
    expected = [[[2.0, 0.0], [0.0, 1.0]], [[-0.5, -1.5], [-2.5, -1.5]]]
    assert FrontEnd("whisper", 2, 2).normalise(x).tolist() == expected


@pytest.mark.parametrize("kind", ["kaldi", "whisper"])
def test_batch_equals_clip_by_clip(kind: audio.FrontEndKind) -> None:
    front_end = FrontEnd(kind, 16, 20, -4.0, 3.0)
    mels = [front_end.extract(noise(n, seed=n)) for n in (400, 2_000, 9_000)]
    assert [len(mel) for mel in mels] == ([1, 11, 20] if kind == "kaldi" else [4, 14, 20])
    assert torch.equal(front_end.batch(mels), torch.cat([front_end.batch([mel]) for mel in mels]))


def test_kaldi_extract_takes_the_mean_of_the_whole_clip() -> None:
    wave = torch.cat([noise(2_000), noise(2_000) + 0.5])
    expected = kaldi_fbank(remove_mean(wave))[:6]
    torch.testing.assert_close(FrontEnd("kaldi", 128, 6).extract(wave), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["kaldi", "whisper"])
def test_extract_takes_one_clip_and_leaves_it_alone(kind: audio.FrontEndKind) -> None:
    wave = noise(2_000)
    before = wave.clone()
    front_end = FrontEnd(kind, 16, 20)
    assert torch.equal(front_end.extract(wave), front_end.extract(wave))
    assert torch.equal(wave, before)
    with pytest.raises(ValueError, match="one clip"):
        front_end.extract(wave[None])


def test_store_key_follows_what_extract_returns() -> None:
    base = FrontEnd("kaldi", 128, 512, -4.268, 4.569)
    assert base.store_key == FrontEnd("kaldi", 128, 512, -6.627, 5.359).store_key
    others = [FrontEnd("whisper", 128, 512), FrontEnd("kaldi", 80, 512), FrontEnd("kaldi", 128, 1024)]
    assert len({base.store_key, *(other.store_key for other in others)}) == 4
    assert len(base.store_key) == 64


def test_store_key_follows_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    front_end = FrontEnd("kaldi", 128, 512)
    before = front_end.store_key
    monkeypatch.setattr(audio, "ALGORITHM_VERSION", audio.ALGORITHM_VERSION + 1)
    assert front_end.store_key != before


def test_describe_names_every_setting() -> None:
    told = FrontEnd("kaldi", 128, 512, -4.268, 4.569).describe()
    assert told == {
        "kind": "kaldi",
        "n_mels": 128,
        "frames": 512,
        "mean": -4.268,
        "std": 4.569,
        "sample_rate": 16_000,
        "algorithm": audio.ALGORITHM_VERSION,
    }


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        (("mfcc", 80, 100), "kind is one of kaldi, whisper, not 'mfcc'"),
        (("kaldi", 0, 100), "n_mels is at least 1"),
        (("kaldi", 80, 0), "frames is at least 1"),
        (("whisper", 80, 1), "frames is at least 2"),
        (("kaldi", 80, 100, 0.0, 0.0), "std above 0"),
        (("kaldi", 80, 100, math.nan, 1.0), "mean is finite"),
    ],
)
def test_front_end_refuses_impossible_settings(settings_: tuple, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FrontEnd(*settings_)


# ---------------------------------------------------------------------------------------------------------------- masks

FILL = 7.0


def masked(
    clips: int, rows: int, bins: int, time_ratio: float, freq_ratio: float, *, random_width: bool, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mask zeros, check that the masked cells are one band of rows and one of bins, and return (start, width) of both.

    Result: two integer arrays [clips, 2], for time and for frequency; a clip without a block has width 0.
    """
    generator = torch_generator(seed, "mask")
    x = mask_time_frequency(
        torch.zeros(clips, rows, bins),
        time_ratio=time_ratio,
        freq_ratio=freq_ratio,
        generator=generator,
        fill=FILL,
        random_width=random_width,
    )
    cells = x.numpy()
    assert set(np.unique(cells)) <= {0.0, FILL}
    hit = cells == FILL
    in_time, in_freq = hit.all(axis=2), hit.all(axis=1)
    np.testing.assert_array_equal(hit, in_time[:, :, None] | in_freq[:, None, :])
    return _runs(in_time), _runs(in_freq)


def _runs(flags: np.ndarray) -> np.ndarray:
    runs = np.zeros((len(flags), 2), int)
    for i, row in enumerate(flags):
        positions = np.flatnonzero(row)
        if len(positions):
            runs[i] = positions[0], len(positions)
            assert positions[-1] - positions[0] + 1 == len(positions)
    return runs


@given(
    rows=st.integers(1, 40),
    bins=st.integers(1, 40),
    time_ratio=st.floats(0, 0.9),
    freq_ratio=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_fixed_masks_have_the_rounded_width(
    rows: int, bins: int, time_ratio: float, freq_ratio: float, seed: int
) -> None:
    time_width, freq_width = round(time_ratio * rows), round(freq_ratio * bins)
    if time_width == rows or freq_width == bins:  # then every cell is hit, and the bands cannot be told apart
        return
    in_time, in_freq = masked(5, rows, bins, time_ratio, freq_ratio, random_width=False, seed=seed)
    assert (in_time[:, 1] == time_width).all()
    assert (in_freq[:, 1] == freq_width).all()


def test_fixed_masks_start_anywhere_they_fit() -> None:
    in_time, in_freq = masked(4_000, 20, 12, 0.25, 0.5, random_width=False)
    starts, counts = np.unique(in_time[:, 0], return_counts=True)
    # floor(U (size - width)): 0 ... size - width - 1, all equally likely
    assert starts.tolist() == list(range(15))
    assert counts.min() > 0.7 * 4_000 / 15
    assert np.unique(in_freq[:, 0]).tolist() == list(range(6))


def test_random_masks_have_all_widths_below_the_ratio() -> None:
    in_time, in_freq = masked(4_000, 50, 20, 0.2, 0.4, random_width=True)
    for runs, size, ratio in ((in_time, 50, 0.2), (in_freq, 20, 0.4)):
        widths, counts = np.unique(runs[:, 1], return_counts=True)
        assert widths.tolist() == list(range(int(size * ratio)))
        assert counts.min() > 0.7 * 4_000 / (size * ratio)
        assert (runs.sum(axis=1) <= size).all()


def test_time_and_frequency_and_clips_are_drawn_independently() -> None:
    in_time, in_freq = masked(4_000, 100, 100, 0.2, 0.2, random_width=True)
    both = (in_time[:, 1] > 0) & (in_freq[:, 1] > 0)
    in_time, in_freq = in_time[both], in_freq[both]
    limit = 0.1  # 6 standard errors
    assert np.abs(np.corrcoef(in_time.T, in_freq.T)[:2, 2:]).max() < limit
    for runs in (in_time, in_freq):
        assert np.abs(np.corrcoef(runs[:-1].T, runs[1:].T)[:2, 2:]).max() < limit


def test_ratio_bounds() -> None:
    x = noise(40, clips=6).reshape(2, 12, 10)

    def cut(time_ratio: float, freq_ratio: float) -> Tensor:
        generator = torch_generator(0, "mask")
        return mask_time_frequency(
            x, time_ratio=time_ratio, freq_ratio=freq_ratio, generator=generator, random_width=False
        )

    assert torch.equal(cut(0.0, 0.0), x)
    assert not cut(1.0, 0.0).any()
    assert not cut(0.0, 1.0).any()
    for ratios in ((-0.1, 0.0), (0.0, 1.1), (math.nan, 0.0)):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            cut(*ratios)


@pytest.mark.parametrize("random_width", [False, True])
def test_masks_repeat_with_the_generator_and_advance_it(random_width: bool) -> None:
    x = torch.ones(4, 60, 30)

    def twice(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch_generator(seed, "mask")
        settings_ = {"time_ratio": 0.4, "freq_ratio": 0.4, "generator": generator, "random_width": random_width}
        return mask_time_frequency(x, **settings_), mask_time_frequency(x, **settings_)

    first, second = twice(3)
    again, _ = twice(3)
    other, _ = twice(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    assert bool((x == 1).all())  # the input is left alone


@pytest.mark.parametrize("random_width", [False, True])
def test_masks_do_not_depend_on_the_clips_that_follow(random_width: bool) -> None:
    many_time, many_freq = masked(40, 50, 30, 0.5, 0.5, random_width=random_width)
    few_time, few_freq = masked(3, 50, 30, 0.5, 0.5, random_width=random_width)
    np.testing.assert_array_equal(many_time[:3], few_time)
    np.testing.assert_array_equal(many_freq[:3], few_freq)


def test_mask_fill_may_differ_between_clips_and_keeps_the_rest() -> None:
    x = noise(200, clips=3).reshape(3, 20, 10).half()
    fill = torch.tensor([5.0, 6.0, 7.0]).reshape(3, 1, 1)
    y = mask_time_frequency(
        x, time_ratio=0.3, freq_ratio=0.2, generator=torch_generator(0, "mask"), fill=fill, random_width=False
    )
    assert y.dtype == x.dtype
    for i in range(3):
        hit = y[i] == 5.0 + i
        assert int(hit.sum()) == 6 * 10 + 2 * 20 - 6 * 2
        assert torch.equal(y[i][~hit], x[i][~hit])


def test_mask_wants_a_batch() -> None:
    with pytest.raises(ValueError, match=r"\[B, T, M\]"):
        mask_time_frequency(
            torch.zeros(4, 4), time_ratio=0.1, freq_ratio=0.1, generator=torch_generator(0), random_width=True
        )
