"""Decoding sound: what comes out of each container, what fails how, what is called truncated."""

from __future__ import annotations

import io
import struct
import threading
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import pytest
import scipy.signal

from tests.sounds import encoded, hour_header, mp3_with_cover, mutated_sounds, not_finite, video
from tests.sounds import sound as make_sound
from winnow.contracts.media import DecodedAudio, MediaCaps
from winnow.stages import _audio, _audio_frames
from winnow.stages._audio import (
    ENCODED_FORMATS,
    decode_audio,
    encode_audio,
    header_duration_s,
    to_mono,
)
from winnow.stages._audio_container import open_container

CAPS = MediaCaps()
PCM = ("wav", "aiff", "au", "caf", "flac")
LOSSY = ("mp3", "opus", "ogg", "m4a", "webm")


def decoded(data: bytes, caps: MediaCaps = CAPS) -> DecodedAudio:
    audio = decode_audio(data, caps)
    assert isinstance(audio, DecodedAudio), audio
    return audio


def as_16_bits(samples: np.ndarray) -> np.ndarray:
    return np.rint(samples * 32768).clip(-32768, 32767) / 32768


@pytest.mark.parametrize("kind", PCM)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_lossless_formats_give_every_bit(kind: str, channels: int) -> None:
    samples = 1.2 * make_sound(0.3, 44_100, channels)  # some beyond full scale
    audio = decoded(encode_audio(samples, 44_100, kind))
    assert np.array_equal(audio.samples, as_16_bits(samples))
    assert audio.samples.dtype == np.float32
    assert audio.samples.flags.c_contiguous
    assert (audio.sample_rate, audio.num_channels, audio.container) == (44_100, channels, kind)
    assert (audio.truncated, audio.header_duration_s) == (False, audio.duration_s)
    assert audio.codec == (
        "flac" if kind == "flac" else f"pcm_s16{'be' if kind in 'aiffau' else 'le'}"
    )


def test_a_wav_made_flac_is_the_same_wav() -> None:
    first = encoded("wav", channels=2)
    flac = encode_audio(decoded(first).samples, 16_000, "flac")
    assert encode_audio(decoded(flac).samples, 16_000, "wav") == first


def test_float_files_keep_what_exceeds_full_scale() -> None:
    samples = 3 * make_sound(0.2)
    audio = decoded(encode_audio(samples, 16_000, "wav_float"))
    assert np.array_equal(audio.samples, samples)
    assert audio.codec == "pcm_f32le"


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_full_scale_is_one_at_every_depth(width: int) -> None:
    """Against the standard library: -full, -half, 0, half, and the highest value."""
    top = 1 << 8 * width - 1
    values = [-top, -top // 2, 0, top // 2, top - 1]
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(8_000)
        unsigned = width == 1
        file.writeframes(b"".join(
            (v + 128 * unsigned).to_bytes(width, "little", signed=not unsigned) for v in values
        ))  # fmt: skip
    assert decoded(out.getvalue()).samples[0] == pytest.approx([v / top for v in values], abs=0)


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2)])
def test_lossy_formats_keep_length_and_sound(kind: str, rate: int, channels: int) -> None:
    samples = make_sound(2.0, rate, channels)
    audio = decoded(encode_audio(samples, rate, kind, bit_rate=128_000 if kind != "ogg" else None))
    frame = {"mp3": 0, "opus": 0, "ogg": 0, "m4a": 1024, "webm": 0}[kind]
    ours = samples.mean(0)
    theirs = to_mono(audio.samples, audio.sample_rate, rate)
    assert 0 <= len(theirs) - len(ours) <= frame
    assert np.corrcoef(ours, theirs[: len(ours)])[0, 1] > 0.99
    assert not audio.truncated
    assert audio.header_duration_s == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("kind", ENCODED_FORMATS)
def test_encoding_is_deterministic_and_every_format_can_be_read(kind: str) -> None:
    data = encoded(kind, 0.4, 22_050)
    assert encoded(kind, 0.4, 22_050) == data
    audio = decoded(data)
    assert audio.duration_s == pytest.approx(0.4, abs=0.15)
    assert not audio.truncated


def test_what_a_format_cannot_hold() -> None:
    with pytest.raises(ValueError, match="no format 'mp4'; use one of wav"):
        encode_audio(make_sound(0.1), 16_000, "mp4")
    with pytest.raises(ValueError, match="mp3 cannot hold samples of shape"):
        encode_audio(make_sound(0.1, channels=6), 16_000, "mp3")
    with pytest.raises(ValueError, match="cannot hold"):
        encode_audio(np.zeros((1, 0), np.float32), 16_000, "wav")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "undecodable"),
        (b"\0" * 1000, "undecodable"),
        (b"<!DOCTYPE html><html><body>not found</body></html>", "undecodable"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "undecodable"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "undecodable"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n", "undecodable"),
        (b"ID3\x04\0\0\0\0\0\x0a" + bytes(3000), "undecodable"),
        (encoded("wav")[:30], "undecodable"),
        (encoded("wav")[:44], "undecodable"),  # samples announced, none there
        (encoded("wav")[:40] + bytes(4), "no_audio"),
        (encoded("m4a")[:4000], "undecodable"),  # its index is at the end
        (hour_header("wav"), "too_long"),
        (hour_header("flac"), "too_long"),
        (not_finite(), "not_finite"),
        (not_finite(float("inf")), "not_finite"),
        (not_finite(1e30), "not_finite"),
        (video(), "is_video"),
        (video(with_sound=False), "is_video"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_has_a_code(data: bytes, code: str) -> None:
    assert decode_audio(data, CAPS) == code


def test_a_100_hour_header_costs_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(_audio, "_decode_packets", never)
    for kind in ("wav", "flac"):
        assert header_duration_s(hour_header(kind)) == 360_000.0
        assert decode_audio(hour_header(kind), CAPS) == "too_long"


@pytest.mark.parametrize("kind", ["aac", "wav", "mp3"])
def test_the_cap_holds_where_no_header_says_a_length(kind: str) -> None:
    data = encoded(kind, 3.0)
    if kind == "wav":  # as it comes out of a pipe
        data = data[:40] + b"\xff\xff\xff\xff" + data[44:]
    if kind == "mp3":
        data = data.replace(b"Info", b"Junk", 1).replace(b"Xing", b"Junk", 1)
    assert header_duration_s(data) is None
    assert decode_audio(data, MediaCaps(max_duration_s=2.0)) == "too_long"
    audio = decoded(data, MediaCaps(max_duration_s=4.0))
    assert audio.header_duration_s is None
    assert not audio.truncated


def test_the_cap_is_inclusive() -> None:
    data = encoded("wav", 2.0)
    assert decoded(data, MediaCaps(max_duration_s=2.0)).duration_s == 2.0
    assert decode_audio(data, MediaCaps(max_duration_s=1.999)) == "too_long"


def test_decoded_bytes_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 4 * 2 * 16_000
    piped = encoded("wav", 1.0, channels=2)
    piped = piped[:40] + b"\xff\xff\xff\xff" + piped[44:]
    for limit, expected in ((whole, None), (whole - 1, "too_large")):
        monkeypatch.setattr(_audio, "MAX_DECODED_BYTES", limit)  # by the header
        monkeypatch.setattr(_audio_frames, "MAX_DECODED_BYTES", limit)  # as decoded
        for data in (encoded("wav", 1.0, channels=2), piped):
            found = decode_audio(data, CAPS)
            assert (found if isinstance(found, str) else None) == expected


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "ogg", "aac", "au", "caf", "webm"])
def test_a_cut_file_is_its_beginning_and_says_so(kind: str) -> None:
    samples = make_sound(3.0)
    data = encode_audio(samples, 16_000, kind)
    audio = decoded(data[: int(len(data) * 0.7)])
    assert audio.truncated
    assert 0.9 < audio.duration_s < 2.3  # an Ogg page holds a second
    whole = decoded(data)
    assert not whole.truncated
    start = audio.samples[:, : audio.samples.shape[1] // 2]
    assert np.allclose(start, whole.samples[:, : start.shape[1]], atol=1e-6)


def test_an_m4a_with_its_index_in_front_can_be_cut() -> None:
    out, samples = io.BytesIO(), make_sound(3.0)
    flags = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}
    with av.open(out, "w", format="mp4", options=flags) as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    audio = decoded(out.getvalue()[: int(len(out.getvalue()) * 0.6)])
    assert audio.truncated
    assert 1.0 < audio.duration_s < 2.5


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "ogg", "m4a", "aac", "au"])
def test_tags_behind_the_sound_are_no_damage(kind: str) -> None:
    audio = decoded(encoded(kind) + b"TAG" + bytes(125))
    assert not audio.truncated
    assert audio.duration_s == pytest.approx(1.0, abs=0.1)


def test_a_variable_bit_rate_without_a_tag_is_whole() -> None:
    """Silence, then noise: a guess by the first frame's bit rate would be wrong by far."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([np.zeros(32_000), 0.3 * rng.standard_normal(32_000)])[None]
    out = io.BytesIO()
    with av.open(out, "w", format="mp3", options={"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=16_000, layout="mono", format="fltp")
        stream.codec_context.qscale = True
        stream.codec_context.global_quality = 2 * 118
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    audio = decoded(out.getvalue())
    assert (audio.truncated, audio.header_duration_s) == (False, None)
    assert audio.duration_s == pytest.approx(4.0, abs=0.15)


@pytest.mark.parametrize(("rate", "channels"), [(1_000, 1), (192_000, 2), (16_000, 12), (7_350, 1)])
def test_unusual_rates_and_channels(rate: int, channels: int) -> None:
    samples = make_sound(0.3, rate, channels)
    audio = decoded(encode_audio(samples, rate, "wav"))
    assert (audio.sample_rate, audio.num_channels) == (rate, channels)
    mono = to_mono(audio.samples, rate, 16_000)
    assert len(mono) == pytest.approx(0.3 * 16_000, abs=1)
    assert np.isfinite(mono).all()


def test_a_cover_is_no_video() -> None:
    data = mp3_with_cover()
    with av.open(io.BytesIO(data)) as container:
        assert [s.type for s in container.streams] == ["audio", "video"]
    audio = decoded(data)
    assert (audio.codec, audio.container, audio.truncated) == ("mp3", "mp3", False)
    assert audio.samples.shape == (1, 16_000)


def test_the_bytes_decide_not_the_tag_before_them() -> None:
    tag = b"ID3\x04\0\0\0\0\0\x14" + bytes(20)
    for kind in ("flac", "aac"):
        audio = decoded(tag + encoded(kind))
        assert audio.container == kind
        assert np.array_equal(audio.samples, decoded(encoded(kind)).samples)


def test_a_file_cannot_open_another(tmp_path) -> None:  # noqa: ANN001
    """FFmpeg's own opener is replaced: even the demuxer of playlists reaches nothing."""
    (tmp_path / "secret.wav").write_bytes(encoded("wav"))
    playlist = f"ffconcat version 1.0\nfile '{tmp_path}/secret.wav'\n".encode()
    with av.open(io.BytesIO(playlist), format="concat", options={"safe": "0"}) as container:
        assert container.streams.audio  # what a careless open would do
    for name in ("wav", "mp4", "matroska", "mp3"):
        with pytest.raises((av.FFmpegError, ValueError)):
            open_container(name, playlist)


def test_a_damaged_frame_of_flac_is_left_out_not_played() -> None:
    samples = make_sound(2.0)
    data = bytearray(encode_audio(samples, 16_000, "flac"))
    data[len(data) // 2] ^= 0x10
    audio = decoded(bytes(data))
    assert audio.truncated
    assert 1.5 < audio.duration_s < 2.0
    heard = {round(float(v) * 32768) for v in audio.samples[0]}
    assert heard <= {round(float(v) * 32768) for v in as_16_bits(samples)[0]}


@pytest.mark.parametrize("kind", ["mp3", "aac", "flac", "opus", "ogg"])
def test_a_change_of_rate_or_channels_does_not_crash(kind: str) -> None:
    joined = encoded(kind, 1.0) + encoded(kind, 1.0, 48_000, 2)
    audio = decoded(joined)
    first = decoded(encoded(kind, 1.0))
    assert (audio.sample_rate, audio.num_channels) == (first.sample_rate, first.num_channels)
    same = min(audio.samples.shape[1], first.samples.shape[1]) // 2
    assert np.allclose(audio.samples[:, :same], first.samples[:, :same], atol=1e-5)


def test_planar_frames_of_many_channels_are_refused() -> None:
    """PyAV walks past the end of their list of planes: found by the fuzzer, a segfault."""
    samples = make_sound(0.2, 48_000, 12)
    out = io.BytesIO()
    with av.open(out, "w", format="ogg") as container:
        options = {"mapping_family": "255"}
        stream = container.add_stream("libopus", rate=48_000, options=options)
        stream.format, stream.layout = "flt", "12c"
        packed = np.ascontiguousarray(samples.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, "flt", "12c")
        frame.sample_rate, frame.pts = 48_000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert decode_audio(out.getvalue(), CAPS) == "undecodable"


def test_an_index_longer_than_its_file_is_refused() -> None:
    """FFmpeg would make 50 million entries in memory, for a file of 11 kB."""
    data = bytearray(encoded("m4a"))
    at = data.index(b"stsz")
    struct.pack_into(">II", data, at + 8, 1, 50_000_000)
    assert decode_audio(bytes(data), CAPS) == "undecodable"
    assert decoded(encoded("m4a")).container == "mp4"


def test_too_many_changes_are_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [encoded("aac", 0.3, rate) for rate in (16_000, 24_000, 32_000)]
    data = b"".join(parts * 2)
    assert decoded(data).sample_rate == 16_000
    monkeypatch.setattr(_audio_frames, "MAX_CHANGES", 2)
    assert decode_audio(data, CAPS) == "undecodable"


@pytest.mark.parametrize(
    ("size", "seconds"),
    [(16_000, 0.5), (0, None), (0xFFFFFFFF, None), (0x7FFFF000, None), (20_000, 0.625)],
)
def test_the_length_that_a_wav_announces(size: int, seconds: float | None) -> None:
    data = encoded("wav", 0.5)
    assert data[36:40] == b"data"
    data = data[:40] + struct.pack("<I", size) + data[44:]
    audio = decoded(data)
    assert audio.header_duration_s == header_duration_s(data) == seconds
    assert audio.truncated == (size == 20_000)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "ogg", "m4a", "webm", "aac"])
def test_header_durations(kind: str) -> None:
    found = header_duration_s(encoded(kind, 2.0))
    assert found is None if kind == "aac" else found == pytest.approx(2.0, abs=0.02)


def test_header_durations_of_what_is_no_audio() -> None:
    assert header_duration_s(b"<html>") is None
    assert header_duration_s(video()) is None
    for data in mutated_sounds():
        found = header_duration_s(data)
        assert found is None or found > 0


def test_bit_rates_are_those_of_headers() -> None:
    rates = {k: decoded(encoded(k)).bit_rate for k in ("wav", "flac", "mp3", "opus", "aac")}
    assert rates == {"wav": 256_000, "flac": None, "mp3": 128_000, "opus": None, "aac": None}


def test_threads_change_nothing() -> None:
    files = mutated_sounds()
    alone = [decode_audio(data, CAPS) for data in files]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda data: decode_audio(data, CAPS), files))
    assert threading.active_count() < 50
    for a, b in zip(alone, beside, strict=True):
        if isinstance(a, str) or isinstance(b, str):
            assert a == b
        else:
            assert np.array_equal(a.samples, b.samples)
            assert replace(a, samples=b.samples) == replace(b, samples=b.samples)


def test_mono_is_the_mean_and_stays_as_it_is_at_its_rate() -> None:
    samples = make_sound(0.5, 16_000, 2)
    assert np.allclose(to_mono(samples, 16_000, 16_000), samples.mean(0), atol=1e-7)
    one = samples[:1]
    assert np.shares_memory(to_mono(one, 16_000, 16_000), one)


def test_resampling_keeps_the_band_and_nothing_above() -> None:
    t = np.arange(48_000) / 48_000
    tones = (np.sin(2 * np.pi * 1_000 * t) + np.sin(2 * np.pi * 11_000 * t))[None]
    found = to_mono(tones.astype(np.float32), 48_000, 16_000)
    expected = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    assert np.abs(found - expected)[500:-500].max() < 1e-3
    frequencies, power = scipy.signal.periodogram(found, 16_000)
    assert power[np.abs(frequencies - 5_000) < 50].max() < 1e-8 * power.max()  # its alias


@pytest.mark.parametrize(("rate", "num"), [(192_000, 1), (44_100, 2), (1, 3), (2_000_000_000, 9)])
def test_mono_has_a_sample_at_least(rate: int, num: int) -> None:
    assert to_mono(np.ones((2, num), np.float32), rate, 16_000).size >= 1
