"""The download stage: columns, parameters, both engines."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import pickle
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.servers import LoopbackServer, Request, answer
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.describe import plan_lines
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunReport
from winnow.stages._fetch.outcome import RETRY_CODES
from winnow.stages._img2dataset import code_of_message
from winnow.stages.download import Download

HAS_IMG2DATASET = sys.version_info < (3, 13) and importlib.util.find_spec("img2dataset") is not None


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    running = LoopbackServer()
    yield running
    running.close()


def picture(seed: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.effect_noise((48, 40), 10 + seed).convert("RGB").save(out, kind)
    return out.getvalue()


def tone() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    return out.getvalue()


def annotate(stage: Download, server: LoopbackServer, urls: list[str | None]) -> pa.RecordBatch:
    options = WorkerOptions(resolve={"site.test": server.address})
    state = stage.setup(options)
    batch = pa.record_batch({stage.url_column: pa.array(urls, pa.string())})
    try:
        out = stage.annotate(batch, state, None)
    finally:
        state.close()
    assert out.schema == stage.writes
    assert out.num_rows == len(urls)
    out.validate(full=True)
    return out


def test_columns(server):
    image, page = picture(1), b"<!doctype html><title>Not found, but 200</title>"
    server.routes["/a.jpg"] = answer(image, Content_Type="image/jpeg")
    server.routes["/page"] = answer(page, Content_Type="text/html; charset=utf-8")
    urls = ["http://site.test/a.jpg", None, "http://site.test/page", "http://site.test/no", "x"]
    out = annotate(Download(), server, urls)
    assert out.to_pydict() == {
        "image": [image, None, None, None, None],
        "download_status": [200, None, 200, 404, None],
        "download_content_type": ["image/jpeg", None, "text/html; charset=utf-8", None, None],
        "download_error": [None, "missing_url", "not_media", "http_404", "bad_url"],
    }


def test_audio(server):
    sound = tone()
    server.routes["/a.wav"] = answer(sound)
    server.routes["/a.jpg"] = answer(picture(1))
    urls = ["http://site.test/a.wav", "http://site.test/a.jpg"]
    stage = Download(media="audio", url_column="audio_url")
    assert stage.reads == pa.schema({"audio_url": pa.string()})
    out = annotate(stage, server, urls)
    assert out.column("audio").to_pylist() == [sound, None]
    assert out.column("download_audio_error").to_pylist() == [None, "not_media"]


Runner = Callable[..., RunReport]
BOTH = """
name: both
source: {{use: url_table, path: {path}}}
stages:
  download: {{retries: 0}}
  sound: {{use: download, media: audio, url_column: audio_url, retries: 0}}
filters:
  all: {{use: where, expression: "url is not None", on_null: drop}}
export:
  train: {{use: parquet, payload: image}}
"""


def write_urls(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"url": a, "audio_url": b, "text": a}) for a, b in rows]
    path.write_text("\n".join(lines))


def test_pictures_and_sounds_in_one_recipe(server, run: Runner, tmp_path: Path):
    image, sound = picture(1), tone()
    server.routes["/a.jpg"], server.routes["/a.wav"] = answer(image), answer(sound)
    page = "http://site.test/a.wav"
    write_urls(tmp_path / "t.jsonl", [("http://site.test/a.jpg", page), (page, page)])
    text = BOTH.format(path=tmp_path / "t.jsonl")
    report = run(text, resolve={"site.test": server.address})
    assert report.exit_code == 0
    (made,) = (tmp_path / "ws" / report.exports["train"]).glob("0*.parquet")
    (row,) = pq.read_table(made).to_pylist()
    assert (row["image"]["bytes"], row["download_error"]) == (image, None)
    assert (row["download_audio_error"], row["download_audio_status"]) == (None, 200)
    assert (row["key"], report.summary["kept"]) == (row["uid"].hex(), 1)


def test_the_plan_says_that_limits_count_per_worker(tmp_path: Path):
    write_urls(tmp_path / "t.jsonl", [("http://site.test/a", "http://site.test/b")])
    text = BOTH.format(path=tmp_path / "t.jsonl").replace("download: {", "download: {per_host: 3, ")
    lines = list(plan_lines(make_plan(parse_recipe(text)), None))
    notes = [line for line in lines if "at once in each worker" in line]
    assert [line.split("up to ")[1].split(" ")[0] for line in notes] == ["3", "8"]


NOWHERE = "http://nowhere-{}.invalid/a.jpg"


def test_a_run_without_its_resolve_ends_before_it_fetches(server, run: Runner, tmp_path: Path):
    """Not one name of the table exists: nothing is written of any row, and --resolve heals it."""
    server.routes["/a.jpg"] = answer(picture(1))
    urls = [NOWHERE.format(i) for i in range(7)]
    write_urls(tmp_path / "t.jsonl", [(u, u) for u in urls])
    text = BOTH.format(path=tmp_path / "t.jsonl").replace("source:", "rows_per_shard: 2\nsource:")
    text = "\n".join(line for line in text.splitlines() if "sound" not in line)
    message = r"not one of 7 host names in a sample .*nowhere-0.invalid, .*--resolve nowhere-"
    with pytest.raises(SetupError, match=message):
        run(text)
    assert not (tmp_path / "ws" / "columns").exists()
    pins = {f"nowhere-{i}.invalid": server.address for i in range(7)}
    assert run(text, resolve=pins).summary["kept"] == 7


def test_a_name_that_does_not_exist_is_asked_again_by_retry_failed(
    server, run: Runner, tmp_path: Path
):
    """One host of the sample can be looked up, so the run begins."""
    server.routes["/a.jpg"] = answer(picture(1))
    urls = [NOWHERE.format(1), f"http://localhost:{server.port}/a.jpg"]
    write_urls(tmp_path / "t.jsonl", [(u, u) for u in urls])
    text = BOTH.format(path=tmp_path / "t.jsonl")
    text = "\n".join(line for line in text.splitlines() if "sound" not in line)
    assert run(text).summary["kept"] == 0
    pins = {"nowhere-1.invalid": server.address}
    assert run(text, resolve=pins, retry_failed=True).summary["kept"] == 1


def test_an_empty_batch(server):
    assert annotate(Download(), server, []).num_rows == 0


def test_cutting_the_batch_changes_nothing(server):
    server.routes.update({f"/{i}": answer(picture(i)) for i in range(12)})
    urls = [f"http://site.test/{i}" if i % 4 else None for i in range(14)]
    whole = annotate(Download(), server, urls)
    parts = [annotate(Download(), server, urls[a:b]) for a, b in ((0, 1), (1, 9), (9, 14))]
    assert pa.Table.from_batches(parts).combine_chunks() == pa.table(whole)


def test_urls_that_are_not_text_are_codes(server):
    raw = pa.array([b"http://site.test/\xff\xfe", b"\xff", b""], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    stage = Download(respect_robots=False)
    state = stage.setup(WorkerOptions(resolve={"site.test": server.address}))
    out = stage.annotate(pa.record_batch({"url": column}), state, None)
    state.close()
    assert out.column("download_error").to_pylist() == ["http_404", "bad_url", "missing_url"]


def test_private_addresses_need_permission(server):
    server.routes["/a"] = answer(picture(1))
    url = f"http://127.0.0.1:{server.port}/a"
    assert annotate(Download(), server, [url])["download_error"].to_pylist() == ["private_address"]
    allowed = annotate(Download(allow_private_networks=True), server, [url])
    assert allowed["download_error"].to_pylist() == [None]


def test_parameters_reach_the_fetcher(server):
    server.routes["/robots.txt"] = answer(b"User-agent: crawler\nDisallow: /private")
    server.routes["/private"] = answer(picture(1))
    server.routes["/noai"] = answer(picture(1), X_Robots_Tag="noai")
    server.routes["/big"] = answer(picture(1))
    server.routes["/hop"] = answer(status=302, Location="/big")
    urls = [f"http://site.test/{p}" for p in ("private", "noai", "big", "hop")]

    def codes(**parameters) -> list[str | None]:
        return annotate(Download(**parameters), server, urls)["download_error"].to_pylist()

    assert codes() == [None, "opted_out", None, None]
    assert codes(user_agent="crawler/1") == ["robots_disallowed", "opted_out", None, None]
    assert codes(user_agent="crawler/1", respect_robots=False, opt_out=()) == [None] * 4
    assert codes(max_bytes=100, max_redirects=0) == [
        "too_large",
        "opted_out",
        "too_large",
        "too_many_redirects",
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"timeout_s": 0.0}, "timeout_s=0.0 is not allowed; it must be above 0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"max_bytes": 0}, "max_bytes=0 .* in 1..2147483648"),
        ({"max_redirects": -1}, "max_redirects=-1"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"per_host": 0}, "per_host=0"),
        ({"retries": 11}, "retries=11"),
        ({"url_column": ""}, "url_column=''"),
        ({"user_agent": ""}, "user_agent=''"),
        ({"user_agent": "x\r\nHost: y"}, "user_agent="),
        ({"opt_out": ("no-ai",)}, "opt_out='no-ai' .* among noai, noimageai"),
        ({"engine": "img2dataset"}, "set unsafe_fetch: true"),
        ({"engine": "img2dataset", "unsafe_fetch": True, "media": "audio"}, "media='audio'"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(RecipeError, match=message):
        Download(**parameters)


def test_a_recipe_can_say_it_all():
    values = {"media": "audio", "opt_out": ["noai"], "max_bytes": 10, "timeout_s": 5.0}
    stage = STAGES.find("download")(**validate(Download, values))
    assert (stage.media, stage.opt_out, stage.max_bytes) == ("audio", ("noai",), 10)
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_effort_stays_out_of_the_fingerprint():
    assert not Download.deterministic
    slow = Download(timeout_s=60.0, concurrency=1, per_host=1, retries=0)
    assert result_parameters(slow) == result_parameters(Download())
    assert result_parameters(Download(max_bytes=5)) != result_parameters(Download())


def test_transient_codes_are_failures_that_can_pass():
    assert {"timeout", "http_503", "http_429", "connect_error"} <= Download.transient_codes
    assert "dns_not_found" in Download.transient_codes - RETRY_CODES  # later, not at once
    permanent = {"http_404", "private_address", "not_media", "opted_out"}
    assert not permanent & Download.transient_codes


def test_every_code_in_the_source_is_in_the_docstring():
    import re
    from pathlib import Path

    import winnow.stages._fetch as package

    folder = Path(package.__file__).parent
    text = "".join(path.read_text() for path in sorted(folder.glob("*.py")))
    raised = set(re.findall(r'FetchFailure\(code="([a-z_0-9]+)"', text))
    raised |= set(re.findall(r'return "([a-z]+_[a-z]+)"', text)) | Download.transient_codes
    documented = set(re.findall(r"^        ([a-z_0-9]+)\b", Download.__doc__, re.MULTILINE))
    missing = {c for c in raised if c not in documented and not re.fullmatch(r"http_\d{3}", c)}
    assert len(raised) > 20
    assert missing == set()


def test_a_bad_resolve_is_a_setup_error():
    with pytest.raises(SetupError, match="resolve"):
        Download().setup(WorkerOptions(resolve={"a.test": "here"}))


# --- engine img2dataset ------------------------------------------------------------------------


def test_img2dataset_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"install winnow-data\[img2dataset\]"):
        Download(engine="img2dataset", unsafe_fetch=True)


@pytest.mark.skipif(not HAS_IMG2DATASET, reason="img2dataset is not installed")
def test_img2dataset_rows_keep_their_bytes(server, tmp_path):
    """Same last path component, same URL twice, answers out of order: each row its own bytes."""
    images = {f"/{i}/img.jpg": picture(i, "PNG" if i % 3 else "JPEG") for i in range(30)}

    def later(body: bytes, pause: float):
        async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(pause)
            writer.write(answer(body))

        return handle

    for i, (path, body) in enumerate(images.items()):
        server.routes[path] = later(body, (30 - i) / 100)
    paths = [*images, "/3/img.jpg", "/3/img.jpg"]
    stage = Download(engine="img2dataset", unsafe_fetch=True, concurrency=16)
    options = WorkerOptions(resolve={"site.test": server.address}, scratch=tmp_path)
    state = stage.setup(options)
    batch = pa.record_batch({"url": [f"http://site.test{p}" for p in paths]})
    out = stage.annotate(batch, state, None)
    state.close()
    assert out["download_error"].to_pylist() == [None] * len(paths)
    assert out["image"].to_pylist() == [images[p] for p in paths]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not HAS_IMG2DATASET, reason="img2dataset is not installed")
def test_img2dataset_codes(server):
    server.routes["/a"] = answer(picture(1))
    server.routes["/page"] = answer(b"<!doctype html><title>Not an image at all</title>")
    server.routes["/empty"] = answer(b"")
    server.routes["/noai"] = answer(picture(1), X_Robots_Tag="noai")
    server.routes["/cut"] = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + picture(1)
    server.hang_up.add("/cut")
    server.routes["/file"] = answer(status=302, Location="file:///etc/passwd")
    server.routes["/loop"] = answer(status=302, Location="/loop")
    names = ["a", "page", "empty", "noai", "cut", "missing", "file", "loop"]
    urls = [f"http://site.test/{n}" for n in names]
    urls += [None, "file:///etc/passwd", "http://a b/", "http://127.0.0.1:1/"]
    stage = Download(engine="img2dataset", unsafe_fetch=True, timeout_s=5.0, retries=0)
    out = annotate(stage, server, urls)
    assert out["download_error"].to_pylist() == [
        None,
        "not_media",
        "empty",
        "opted_out",
        "incomplete",
        "http_404",
        "scheme_not_allowed",
        "too_many_redirects",
        "missing_url",
        "scheme_not_allowed",
        "bad_url",
        "connect_error",
    ]
    assert out["download_status"].to_pylist()[5] == 404
    only_bad = annotate(stage, server, [None, "ftp://x"])
    assert only_bad["download_error"].to_pylist() == ["missing_url", "scheme_not_allowed"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("HTTP Error 404: Not Found", ("http_404", 404)),
        ("HTTP Error 503: Service Unavailable", ("http_503", 503)),
        ("<urlopen error [Errno -2] Name or service not known>", ("dns_not_found", None)),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", ("dns_error", None)),
        ("<urlopen error timed out>", ("timeout", None)),
        ("The read operation timed out", ("timeout", None)),
        ("<urlopen error [Errno 111] Connection refused>", ("connect_error", None)),
        ("<urlopen error [Errno 101] Network is unreachable>", ("connect_error", None)),
        ("Remote end closed connection without response", ("disconnected", None)),
        ("[Errno 104] Connection reset by peer", ("disconnected", None)),
        ("IncompleteRead(5 bytes read, 10 more expected)", ("incomplete", None)),
        (
            "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
            "self-signed certificate (_ssl.c:1006)>",
            ("tls_error", None),
        ),
        ("Use of image disallowed by X-Robots-Tag directive", ("opted_out", None)),
        ("something new", ("download_failed", None)),
        ("", ("download_failed", None)),
    ],
)
def test_messages_of_img2dataset(message, code):
    assert code_of_message(message) == code


def hours_of_silence(hours: float) -> bytes:
    """A WAV whose header promises so many hours, and which ends after a second."""
    data = bytearray(tone())
    promised = int(hours * 3600 * 8000 * 2)
    data[4:8] = (promised + 36).to_bytes(4, "little")
    data[40:44] = promised.to_bytes(4, "little")
    return bytes(data)


def test_a_recording_is_as_long_as_its_header_says(server: LoopbackServer) -> None:
    routes = {"/short": tone(), "/long": hours_of_silence(24), "/page": b"<html>" + bytes(99)}
    # 100 hours of 8 kHz need more bytes than 32 bits count: at 1 kHz they fit.
    slow = bytearray(hours_of_silence(0.0))
    promised = 100 * 3600 * 1000 * 2
    slow[24:28], slow[28:32] = (1000).to_bytes(4, "little"), (2000).to_bytes(4, "little")
    slow[4:8], slow[40:44] = (promised + 36).to_bytes(4, "little"), promised.to_bytes(4, "little")
    routes["/hundred"] = bytes(slow)
    for path, body in routes.items():
        server.routes[path] = answer(body, Content_Type="audio/wav")
    urls: list[str | None] = [f"http://site.test{path}" for path in routes]
    capped = annotate(Download(media="audio", max_duration_s=600.0), server, urls).to_pydict()
    assert capped["download_audio_error"] == [None, "too_long", "not_media", "too_long"]
    assert capped["audio"] == [tone(), None, None, None]
    assert capped["download_audio_status"] == [200] * 4
    free = annotate(Download(media="audio"), server, urls).to_pydict()
    assert free["download_audio_error"] == [None, None, "not_media", None]


def test_the_cap_on_length_is_for_audio_and_leaves_fingerprints() -> None:
    assert "max_duration_s" not in result_parameters(Download(media="audio"))
    with pytest.raises(RecipeError, match="'audio' with max_duration_s"):
        Download(max_duration_s=60.0)
    with pytest.raises(RecipeError, match=r"max_duration_s=-1.0 .* above 0"):
        Download(media="audio", max_duration_s=-1.0)
