"""The source: rows, truth against what is heard in the decoded files, the server, the scores."""

from __future__ import annotations

import collections
import http.client
import io
import itertools
import pickle
from collections.abc import Mapping

import av
import numpy as np
import pyarrow as pa
import pytest
import soxr
from PIL import Image

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import row_uid
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import SOURCES
from winnow.stages.sources._speech import payload
from winnow.stages.sources._speech.noise import COPIES, FORMATS, SHARES, Row, World
from winnow.stages.sources._speech.serve import find
from winnow.stages.sources._speech.voice import SPEAKERS
from winnow.stages.sources.scenes import SceneSource
from winnow.stages.sources.speech import SpeechSource

PARTS = ("train", "validation", "test")
LOSSLESS = ("wav", "flac")


def read(source: SpeechSource) -> pa.Table:
    return pa.Table.from_batches([b for file in source.files() for b in source.read(file)])


def decode(data: bytes) -> tuple[np.ndarray, int]:
    """Decode with PyAV alone: float64 (N,), mean of the channels, and the rate."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        blocks = [frame.to_ndarray() for frame in container.decode(stream)]
        kind, rate = stream.codec_context.format, stream.codec_context.sample_rate
        channels = stream.codec_context.channels
    if kind.is_planar:
        samples = np.concatenate(blocks, axis=1).mean(axis=0, dtype=np.float64)
    else:
        flat = np.concatenate(blocks, axis=1).reshape(-1, channels)
        samples = flat.mean(axis=1, dtype=np.float64)
    return samples / (32768 if kind.name.startswith("s16") else 1), rate


def rows_of(world: World, kind: str, count: int, formats: tuple[str, ...] = FORMATS) -> list[Row]:
    rows = map(world.row, range(4000))
    found = (row for row in rows if row.kind == kind and row.format in formats)
    return list(itertools.islice(found, count))


SOURCE = SpeechSource(num_rows=150, rows_per_file=60)
WORLD = SOURCE.world()
TABLE = read(SOURCE)


def test_registered_with_parameters_of_yaml() -> None:
    factory = SOURCES.find("speech")
    assert factory is SpeechSource
    values = validate(factory, {"num_rows": 10, "formats": ["wav"], "noise": {"noisy": 0.5}})
    source = factory(**values)
    assert source.formats == ("wav",)
    assert pickle.loads(pickle.dumps(source)) == source
    assert "num_rows" not in result_parameters(source)


def test_rows_follow_the_schema_and_do_not_depend_on_their_number() -> None:
    assert TABLE.num_rows == 150
    assert TABLE.schema == pa.schema([pa.field("uid", pa.binary(16)), *SOURCE.schema()])
    assert [f.name for f in SOURCE.files()] == ["part-00000", "part-00001", "part-00002"]
    assert read(SpeechSource(num_rows=20)).equals(TABLE.slice(0, 20).combine_chunks())
    for row in TABLE.to_pylist():
        assert row["uid"] == row_uid(row["url"], row["text"])


def test_kinds_come_in_their_shares() -> None:
    counts = collections.Counter(WORLD.row(i).kind for i in range(4000))
    for kind, share in SHARES.items():
        assert counts[kind] / 4000 == pytest.approx(share, abs=4 * (share / 4000) ** 0.5), kind
    assert counts["clean"] / 4000 == pytest.approx(1 - sum(SHARES.values()), abs=0.03)


def test_nulls_are_where_there_is_nothing_to_tell() -> None:
    for row in TABLE.to_pylist():
        there = row["truth_kind"] not in ("dead_link", "html", "corrupt")
        heard = there and row["truth_kind"] != "silent"
        for name in ("duration_s", "clipped_ratio", "silence_ratio", "kept_ratio"):
            assert (row[f"truth_{name}"] is not None) == there, row
        for name in ("text", "language", "voice", "snr_db"):
            assert (row[f"truth_{name}"] is not None) == heard, row
        assert (row["truth_duplicate_of"] is not None) == (row["truth_kind"] in COPIES)
        assert (row["truth_changes"] is not None) == (row["truth_kind"] == "near_duplicate")
        assert row["truth_class"] is None


def test_texts_are_right_or_wrong_as_they_say() -> None:
    for row in map(WORLD.row, range(1500)):
        right = row.kind not in ("wrong_text", "wrong_language", "foreign_text")
        assert (row.text == row.said) == right, row
        assert (row.voice.language == "en") == (row.kind != "wrong_language")
        assert row.text.isascii() or row.kind == "foreign_text"
        assert (row.kind, row.format) != ("dc_offset", "opus")


def test_copies_name_an_earlier_clean_row_and_share_its_words() -> None:
    for row in map(WORLD.row, range(600)):
        if row.original is None:
            continue
        source = WORLD.row(row.original)
        assert source.index < row.index
        assert source.kind == "clean"
        assert (row.text, row.said, row.voice) == (source.text, source.said, source.voice)
        assert (WORLD.uid(row) == WORLD.uid(source)) == (row.kind == "repeated_row")
        if row.kind == "near_duplicate":
            assert row.format == row.changes[0]
            assert row.format in ("mp3", "opus")
    same = rows_of(WORLD, "exact_duplicate", 1)[0]
    assert same.original is not None
    first = payload.answer(WORLD, WORLD.row(same.original)).body
    assert payload.answer(WORLD, same).body == first


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_decodes_to_the_stated_duration(extension: str) -> None:
    (row,) = rows_of(WORLD, "clean", 1, (extension,))
    found = payload.answer(WORLD, row)
    assert (found.status, found.content_type) == (200, payload.TYPES[extension])
    samples, rate = decode(found.body)
    seconds = payload.duration_s(WORLD, row)
    assert len(samples) / rate == pytest.approx(seconds, abs=0.06)  # an encoder pads a frame or two
    assert seconds > 3.0
    assert payload.answer(WORLD, row).body == found.body


def test_durations_of_every_kind() -> None:
    for kind in ("silent", "mostly_silent", "truncated", "clipped", "upsampled", "near_duplicate"):
        for row in rows_of(WORLD, kind, 3):
            samples, rate = payload.recording(WORLD, row)
            assert len(samples) / rate == pytest.approx(payload.duration_s(WORLD, row), abs=0.001)


def test_the_noise_of_noisy_rows_is_what_it_says() -> None:
    rows = rows_of(WORLD, "noisy", 6)
    assert {row.color for row in rows} == {"white", "pink", "babble"}
    for row in rows:
        clear, rate = payload.spoken(WORLD, row)
        noisy, _ = payload.recording(WORLD, row)
        assert noisy_ratio_db(clear.astype(float), noisy.astype(float), rate) == pytest.approx(
            row.snr_db, abs=0.5
        )


def noisy_ratio_db(clear: np.ndarray, noisy: np.ndarray, rate: int) -> float:
    """SNR from the two recordings. In pauses there is noise alone, which gives its power."""
    size = round(rate * 0.02)
    frames = np.square(clear[: len(clear) // size * size].reshape(-1, size)).mean(axis=1)
    speech = frames[frames >= frames.max() * 10**-3.5].mean()
    # noisy = a * (clear + noise), uncorrelated up to chance: the one scale that fits the powers.
    scale = np.dot(noisy, clear) / np.dot(clear, clear)
    return float(10 * np.log10(speech / np.mean(np.square(noisy / scale - clear))))


def test_damage_is_heard_in_the_files() -> None:
    for row in rows_of(WORLD, "clipped", 3, LOSSLESS):
        samples, _ = decode(payload.answer(WORLD, row).body)
        full = np.mean(np.abs(samples) >= 32767 / 32768)
        assert full == pytest.approx(row.clipped_ratio, abs=0.002)
    for row in rows_of(WORLD, "mostly_silent", 3, LOSSLESS):
        samples, _ = decode(payload.answer(WORLD, row).body)
        longest = np.mean(samples == 0)
        assert row.silence_ratio <= longest < row.silence_ratio + 0.1
    for row in rows_of(WORLD, "silent", 2, LOSSLESS):
        assert np.abs(decode(payload.answer(WORLD, row).body)[0]).max() < 0.001
    for extension in ("wav", "mp3", "ogg", "m4a"):
        (row,) = rows_of(WORLD, "dc_offset", 1, (extension,))
        assert 0.04 < abs(decode(payload.answer(WORLD, row).body)[0].mean()) < 0.32
    for row in rows_of(WORLD, "upsampled", 2) + rows_of(WORLD, "clean", 2):
        samples, rate = decode(payload.answer(WORLD, row).body)
        power = np.square(np.abs(np.fft.rfft(samples)))
        above = power[np.fft.rfftfreq(len(samples), 1 / rate) > 4200].sum() / power.sum()
        assert (above < 1e-5) == (row.kind == "upsampled"), row


def test_truncated_files_and_sounds_are_the_beginning() -> None:
    (row,) = rows_of(WORLD, "truncated_bytes", 1)
    whole = payload.audio_bytes(WORLD, Row(**{**as_dict(row), "kind": "clean"}))
    assert payload.answer(WORLD, row).body == whole[: round(len(whole) * row.kept_ratio)]
    (row,) = rows_of(WORLD, "truncated", 1)
    whole_s, _ = payload.recording(WORLD, Row(**{**as_dict(row), "kind": "clean"}))
    part, _ = payload.recording(WORLD, row)
    assert np.array_equal(part, whole_s[: len(part)])
    assert len(part) / len(whole_s) == pytest.approx(row.kept_ratio, abs=0.001)


def as_dict(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in Row.__slots__}


def test_near_duplicates_sound_like_their_originals() -> None:
    for row in rows_of(WORLD, "near_duplicate", 4):
        assert row.original is not None
        copy, rate = decode(payload.answer(WORLD, row).body)
        source, other = payload.recording(WORLD, WORLD.row(row.original))
        ratio = len(copy) / rate / (len(source) / other)
        assert ratio == pytest.approx(0.95 if "trim" in row.changes else 1.0, abs=0.02)
        low, first = (soxr.resample(s, r, 8000) for s, r in ((copy, rate), (source, other)))
        size = 1 << int(np.ceil(np.log2(len(low) + len(first))))
        cross = np.fft.irfft(np.fft.rfft(first, size) * np.conj(np.fft.rfft(low, size)))
        assert cross.max() / np.sqrt(np.dot(low, low) * np.dot(first, first)) > 0.9


@pytest.mark.parametrize("content", ["sentences", "names"])
def test_parts_share_no_voice_sentence_or_picture(content: str) -> None:
    words, voices, backgrounds = {}, {}, {}
    for part in PARTS:
        world = SpeechSource(content=content, part=part, seed=PARTS.index(part)).world()
        rows = [world.row(i) for i in range(250)]
        words[part] = {row.said for row in rows}
        voices[part] = {row.voice.variant for row in rows}
        assert voices[part] == set(SPEAKERS[part])
        if world.pictures is not None:
            scenes = [world.pictures.scene(row.picture) for row in rows if row.picture]
            backgrounds[part] = {(s.background.pattern, s.background.color) for s in scenes}
    for one, other in (PARTS[:2], PARTS[1:], PARTS[::2]):
        assert not voices[one] & voices[other]
        if content == "sentences":
            assert not words[one] & words[other]
        else:
            assert not backgrounds[one] & backgrounds[other]


def test_names_are_triplets_of_one_thing() -> None:
    source = SpeechSource(content="names", part="test", num_rows=20, num_concepts=250, seed=4)
    table = read(source)
    pictures = source.pictures()
    assert pictures is not None
    images = pa.Table.from_batches(list(pictures.read(pictures.files()[0])))
    assert table["truth_class"].equals(images["truth_class"])
    assert table["image_url"].equals(images["url"])
    for row in table.to_pylist():
        assert row["text"].partition(" ")[2] == row["truth_class"]
        assert row["truth_text"].endswith(row["truth_class"])
    world = source.world()
    assert len({world.row(i).text for i in range(1500)}) >= 230


def test_both_servers_answer_as_the_rows_say() -> None:
    source = SpeechSource(content="names", num_rows=6, num_concepts=100, formats=("wav", "flac"))
    table = read(source)
    with source.serve() as hosts:
        assert set(hosts) == {"speech.test", "scenes.test"}
        for row in table.to_pylist():
            samples, rate = decode(fetch(hosts, row["url"])[1])
            assert len(samples) / rate == pytest.approx(row["truth_duration_s"], abs=0.01)
            picture = Image.open(io.BytesIO(fetch(hosts, row["image_url"])[1]))
            assert 128 <= picture.width <= 192
        assert fetch(hosts, "http://speech.test/0/0.wav")[0] == 404
        assert fetch(hosts, "http://speech.test/robots.txt") == (
            200,
            b"User-agent: *\nAllow: /\n",
        )


def fetch(hosts: Mapping[str, str], url: str) -> tuple[int, bytes]:
    host, _, target = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(hosts[host], timeout=30)
    try:
        connection.request("GET", f"/{target}")
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_answers_without_a_recording() -> None:
    kinds = {kind: rows_of(WORLD, kind, 3) for kind in ("dead_link", "html", "corrupt")}
    assert {payload.answer(WORLD, row).status for row in kinds["dead_link"]} <= {404, 410}
    assert payload.answer(WORLD, kinds["html"][0]).body.startswith(b"<!DOCTYPE html>")
    for row in kinds["corrupt"]:
        with pytest.raises((av.error.FFmpegError, IndexError)):
            decode(payload.answer(WORLD, row).body)
    (slow,) = rows_of(WORLD, "slow_link", 1)
    assert payload.answer(WORLD, slow).drip
    (repeat,) = rows_of(WORLD, "repeated_row", 1)
    assert repeat.original is not None
    assert find(WORLD, repeat.path) == payload.answer(WORLD, WORLD.row(repeat.original))
    assert find(WORLD, "/0/99999999999999999999.wav").status == 404


def test_score_knows_the_filters_of_recordings() -> None:
    kinds = TABLE["truth_kind"].to_pylist()
    caught = {"clipped": "max_clipping_ratio", "wrong_text": "max_word_error_rate"}
    ledger = TABLE.append_column(
        "outcome", pa.array(["dropped" if k in caught else "kept" for k in kinds])
    ).append_column("filter", pa.array([caught.get(k) for k in kinds], pa.string()))
    found = {e["filter"]: e for e in SOURCE.score(ledger, tuple(caught.values()))}
    assert found["max_clipping_ratio"]["precision"] == 1.0
    assert found["max_clipping_ratio"]["recall"] == 1.0
    assert found["max_word_error_rate"]["precision"] == 1.0
    assert found["max_word_error_rate"]["recall"] < 0.9
    assert found["overall"]["clean"] == kinds.count("clean")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_rows": 0}, "num_rows=0; use 1 or more"),
        ({"noise": {"tiny": 0.1}}, "there is no noise 'tiny'; use some of noisy, "),
        ({"noise": {"noisy": 0.7, "silent": 0.6}}, "add up to 1.3"),
        ({"noise": {"noisy": 0.8, "near_duplicate": 0.2}}, "leave nothing to copy"),
        ({"part": "test", "voices": ("m1",)}, "voices=.*; use some of f2, "),
        ({"languages": ("en",)}, "languages=.*; use some of de, es"),
        ({"formats": ("wav", "wav")}, "each once"),
        ({"host": "a b"}, "is not a host name"),
        ({"host": "x.test", "image_host": "x.test"}, "use two names"),
        ({"content": "names", "noise": {"noisy": 0.1}}, 'content "names" has no noise'),
        ({"num_concepts": 100}, 'num_concepts=100 is for content: "names"'),
        ({"content": "names", "num_concepts": 100_000}, "num_concepts=100000"),
    ],
)
def test_parameters_outside_their_bounds(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SpeechSource(**parameters)  # type: ignore[arg-type]


def test_another_seed_or_parameter_is_another_web() -> None:
    urls = {
        SpeechSource(**parameters).world().url(SpeechSource(**parameters).world().row(3))
        for parameters in (
            {},
            {"seed": 1},
            {"part": "train"},
            {"formats": ("wav",)},
            {"content": "names"},
            {"content": "names", "num_concepts": 90},
        )
    }
    assert len(urls) == 6
    assert SceneSource().world().url(SceneSource().world().row(3)) not in urls
