"""The caption stage with models in this process: whose caption it is, batches, memory, codes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.captioners import batch, blip, llava, projector
from tests.scored import picture, png
from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import result_parameters, validate
from winnow.contracts.registry import STAGES
from winnow.contracts.stage import WorkerOptions
from winnow.models.generation import Sampling
from winnow.stages import _caption_local
from winnow.stages._caption_local import LocalWorker, free_bytes, power_of_two_below
from winnow.stages._caption_rows import Candidate, caption_row
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.caption import Caption

IMAGES = [png(picture(seed)) for seed in range(10)]
TEXT = "synthetic_captions"
ENGINES = {"blip": ("hf", blip), "llava": ("hf", llava), "projector": ("projector", projector)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, (_, make) in ENGINES.items()}


@pytest.fixture(scope="module")
def make(folders: dict[str, str]) -> Callable[..., tuple[Caption, LocalWorker]]:
    """Build a stage on a small model, and its worker."""

    def build(kind: str = "blip", **parameters: Any) -> tuple[Caption, LocalWorker]:
        parameters = {"max_tokens": 8, "batch_size": 4, "keep_cut": True} | parameters
        stage = Caption(engine=ENGINES[kind][0], model=folders[kind], **parameters)
        return stage, stage.setup(WorkerOptions())

    return build


def annotate(stage: Caption, state: Any, rows: pa.RecordBatch, **caps: int) -> pa.RecordBatch:
    """Annotate as a pass does, in batches of ``batch_rows``."""
    parts = []
    size = stage.batch_rows or rows.num_rows or 1
    for start in range(0, rows.num_rows, size):
        part = rows.slice(start, size)
        with MediaCache(1 << 24, 2) as cache:
            media = BatchMedia(part, caps=MediaCaps(**caps), cache=cache, first_row=0)
            parts.append(stage.annotate(part, state, media))
        assert parts[-1].schema == stage.writes
    return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def texts(out: pa.RecordBatch) -> list[list[str] | None]:
    return out.column(TEXT).to_pylist()


def errors(out: pa.RecordBatch) -> list[str | None]:
    return out.column(f"{TEXT}_error").to_pylist()


@pytest.mark.parametrize("kind", ENGINES)
def test_captions_are_those_of_the_model_asked_one_by_one(make: Any, kind: str) -> None:
    stage, state = make(kind)
    out = annotate(stage, state, batch(IMAGES))
    assert errors(out) == [None] * 10
    assert len({t[0] for t in texts(out) or []}) > 2
    for row in range(10):
        inputs = state.captioner.prepare([picture(row)])
        one = state.captioner.generate(inputs, Sampling(max_tokens=8), None, candidates=1)[0]
        assert texts(out)[row] == [one.text]
        log = out.column(f"{TEXT}_log_likelihood")[row].as_py()
        assert log == [pytest.approx(one.log_likelihood, abs=1e-4)]
    assert set(out.column(f"{TEXT}_model").to_pylist()) == {stage.model_digest()}
    prompt = "" if kind == "blip" else "Describe the picture."
    assert set(out.column(f"{TEXT}_prompt").to_pylist()) == {prompt}


@pytest.mark.parametrize("kind", ["blip", "llava"])
def test_neighbours_and_padding_do_not_change_a_bit(make: Any, kind: str) -> None:
    stage, state = make(kind, batch_size=8)
    whole = annotate(stage, state, batch(IMAGES[:8]))
    for row in range(4):
        others: list[bytes | None] = [png(picture(50 + row + i)) for i in range(8)]
        others[row], others[7 - row] = IMAGES[row], None
        assert annotate(stage, state, batch(others)).slice(row, 1).equals(whole.slice(row, 1))
    assert annotate(stage, state, batch(IMAGES[:3])).equals(whole.slice(0, 3))
    with ThreadPoolExecutor(3) as pool:
        torch.set_num_threads(2)
        for out in pool.map(lambda _: annotate(stage, state, batch(IMAGES[:8])), range(3)):
            assert out.equals(whole)
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["blip", "projector"])
def test_a_caption_is_never_attached_to_another_row(make: Any, kind: str) -> None:
    """Shuffled, cut, failing and repeated batches: a row's text is a function of its picture."""
    stage, state = make(kind)
    drawn_stage, drawn = make(kind, sampling="nucleus", num_candidates=2, seed=3)
    uids = [bytes([i]) * 16 for i in range(10)]
    alone: dict[tuple[bytes, int], Any] = {}
    for uid, image in zip(uids, IMAGES, strict=True):
        for number, (one, worker) in enumerate(((stage, state), (drawn_stage, drawn))):
            alone[uid, number] = texts(annotate(one, worker, batch([image], [uid])))[0]

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.permutations(range(10)), st.sets(st.integers(0, 9), max_size=6), st.integers(1, 10))
    def check(order: list[int], broken: set[int], count: int) -> None:
        order = order[:count]
        images = [IMAGES[i][:40] if i in broken else IMAGES[i] for i in order]
        rows = batch(images, [uids[i] for i in order])
        for number, (one, worker) in enumerate(((stage, state), (drawn_stage, drawn))):
            found = texts(annotate(one, worker, rows))
            expected = [None if i in broken else alone[uids[i], number] for i in order]
            assert found == expected

    check()
    assert len({str(alone[uid, 1]) for uid in uids}) > 5


def test_each_fold_is_captioned_by_its_own_model(make: Any, tmp_path: Path) -> None:
    """As the two models alone caption the rows; a row of no fold by one of them, not by both."""
    stage, state = make("projector")
    other = projector(tmp_path, seed=5)
    values = {"engine": "projector", "max_tokens": 8, "batch_size": 4, "keep_cut": True}
    single = Caption(model=other, **values)
    rows = batch(IMAGES)
    alone = [
        texts(annotate(one, worker, rows))
        for one, worker in ((stage, state), (single, single.setup(WorkerOptions())))
    ]
    assert alone[0] != alone[1]
    both = Caption(models=(stage.model, other), **values)
    folds = ["0", "1", "1", None, "0", "7", "1", "0", None, "1"]
    found = annotate(both, both.setup(WorkerOptions()), rows.append_column("fold", pa.array(folds)))
    assert errors(found) == ["unknown_fold" if fold == "7" else None for fold in folds]
    models = found.column(f"{TEXT}_model").to_pylist()
    digests = [stage.model_digest(), single.model_digest()]
    for row, fold in enumerate(folds):
        if fold != "7":
            model = digests.index(models[row])
            assert fold is None or model == int(fold)
            assert (texts(found) or [])[row] == alone[model][row]
    assert both.model_digest() not in digests


def test_a_seed_is_the_rows_own(make: Any) -> None:
    """Equal pictures under other uids are described otherwise; under the same uid, the same."""
    stage, state = make(sampling="nucleus", seed=5)
    out = texts(annotate(stage, state, batch([IMAGES[0]] * 8)))
    assert len({str(text) for text in out}) > 3
    seeds = [stable_hash64(5, bytes([i]) * 16, 0) for i in range(8)]
    inputs = state.captioner.prepare([picture(0)] * 8)
    made = state.captioner.generate(inputs, Sampling(max_tokens=8, top_p=0.9), seeds)
    assert out == [[one.text] for one in made]
    again, worker = make(sampling="nucleus", seed=6)
    assert texts(annotate(again, worker, batch([IMAGES[0]] * 8))) != out


def test_more_candidates_keep_the_first_ones(make: Any) -> None:
    two_stage, two = make(sampling="nucleus", num_candidates=2)
    five_stage, five = make(sampling="nucleus", num_candidates=5)
    fewer = texts(annotate(two_stage, two, batch(IMAGES)))
    out = annotate(five_stage, five, batch(IMAGES))
    for few, many in zip(fewer, texts(out), strict=True):
        assert set(few or []) <= set(many or [])
        assert len(set(many or [])) == len(many or []) > 2
    single = annotate(*make(sampling="nucleus"), batch(IMAGES))
    assert all(set(a or []) <= set(b or []) for a, b in zip(texts(single), fewer, strict=True))


def test_candidates_are_usable_sorted_and_none_twice() -> None:
    made = [
        Candidate(text=" a cat ", log_likelihood=-6.0, num_tokens=3),
        Candidate(text="a very small dog", log_likelihood=-6.5, num_tokens=5),
        Candidate(text="a cat", log_likelihood=-3.0, num_tokens=3),
        Candidate(text="cut off in", log_likelihood=-0.1, num_tokens=3, finished=False),
        Candidate(text="  ", log_likelihood=-0.1, num_tokens=1),
        Candidate(text="x", log_likelihood=float("nan"), num_tokens=1),
    ]
    row = caption_row(made, model="m", keep_cut=False)
    assert row.texts == ("a cat", "a very small dog")
    assert row.log_likelihoods == (-3.0, -6.5)
    assert caption_row(made, model="m", keep_cut=True).texts[0] == "cut off in"
    unknown = [Candidate(text="b"), Candidate(text="a\ud800")]
    assert caption_row(unknown, model="m", keep_cut=False).texts == ("b", "a?")
    for bad, code in (
        (made[3:5], "too_long"),
        (made[4:5], "empty_caption"),
        (made[4:], "not_finite"),
    ):
        assert caption_row(bad, model="m", keep_cut=False).error == code


def test_rows_that_have_no_caption_get_a_code(make: Any) -> None:
    stage, state = make(keep_cut=False)
    huge = png(Image.new("1", (3000, 2000)))
    rows = batch([IMAGES[0], None, IMAGES[1][:50], huge, b"<html>", *IMAGES[1:6]])
    out = annotate(stage, state, rows, max_pixels=1_000_000)
    expected = [None, "missing", "undecodable", "too_large", "undecodable"]
    kept = texts(annotate(*make(), batch(IMAGES)))
    assert errors(out)[1:5] == expected[1:]
    short = [
        state.captioner.generate(state.captioner.prepare([picture(i)]), Sampling(8))[0]
        for i in range(6)
    ]
    cut = [None if one.finished else "too_long" for one in short]
    assert {"too_long", None} == set(cut)
    assert [errors(out)[0], *errors(out)[5:]] == cut
    assert texts(out)[5:] == [
        None if c else text for c, text in zip(cut[1:], kept[1:6], strict=True)
    ]
    for name in out.schema.names[:-1]:
        assert [v is None for v in out.column(name).to_pylist()] == [
            e is not None for e in errors(out)
        ]


def test_an_empty_text_and_an_overflow_have_codes(make: Any) -> None:
    stage, state = make()
    bias = state.captioner.network.get_parameter("text_decoder.cls.predictions.bias").data
    bias[3] += 1000  # the end, at once
    assert errors(annotate(stage, state, batch(IMAGES[:2]))) == ["empty_caption"] * 2
    bias[3] = torch.nan
    assert errors(annotate(stage, state, batch(IMAGES[:2]))) == ["not_finite"] * 2


@dataclass
class Limited:
    """A real captioner on a machine that holds few rows, or with a processor that refuses some."""

    inner: Any
    most: int = 1 << 30
    min_width: int = 0
    sizes: tuple[int, ...] = ()
    on_gpu: bool = True

    @property
    def prompt(self) -> str:
        return self.inner.prompt

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        if any(image.width < self.min_width for image in images):
            msg = "the picture is too narrow"
            raise ValueError(msg)
        return self.inner.prepare(images)

    def generate(self, inputs: Any, *args: Any, **options: Any) -> Any:
        size = len(inputs["pixel_values"])
        self.sizes += (size,)
        if size > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return self.inner.generate(inputs, *args, **options)


def test_auto_halves_until_the_memory_holds_a_batch(make: Any) -> None:
    stage, state = make()
    expected = annotate(stage, state, batch(IMAGES))
    auto = Caption(engine="hf", model=stage.model, max_tokens=8, keep_cut=True)
    captioner = Limited(state.captioner, most=4)
    options = auto.setup(WorkerOptions()).options
    worker = LocalWorker(captioner, options, digest=stage.model_digest())
    assert (auto.batch_rows, worker.size) == (256, 128)
    many = batch([IMAGES[i % 10] for i in range(130)], [bytes([i]) * 16 for i in range(130)])
    out = annotate(auto, worker, many)
    assert captioner.sizes[:5] == (128, 64, 32, 16, 8)
    assert set(captioner.sizes[5:]) == {4}
    assert worker.size == 4
    assert texts(out) == [texts(expected)[i % 10] for i in range(130)]
    captioner.most = 0
    with pytest.raises(ShardError, match="memory does not hold a batch of 1") as caught:
        annotate(auto, worker, batch(IMAGES))
    assert not caught.value.retryable


def test_a_fixed_batch_that_does_not_fit_says_so(make: Any) -> None:
    stage, state = make()
    state.captioner = Limited(state.captioner, most=2)
    with pytest.raises(ShardError, match="a batch of 4; lower batch_size"):
        annotate(stage, state, batch(IMAGES))


def test_other_errors_are_not_taken_for_memory(make: Any) -> None:
    stage, state = make(num_candidates=1)
    state.captioner.network.text_decoder.cls = None
    with pytest.raises(TypeError):
        annotate(stage, state, batch(IMAGES[:1]))


def test_a_picture_that_the_processor_refuses_costs_its_row(make: Any) -> None:
    stage, state = make(batch_size=8)
    expected = texts(annotate(stage, state, batch(IMAGES)))
    widths = sorted(picture(i).width for i in range(10))
    state.captioner = Limited(state.captioner, min_width=widths[3])
    out = annotate(stage, state, batch(IMAGES))
    for row in range(10):
        narrow = picture(row).width < widths[3]
        assert errors(out)[row] == ("undecodable" if narrow else None)
        assert texts(out)[row] == (None if narrow else expected[row])


def test_on_the_cpu_the_memory_bounds_the_batch(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, state = make(batch_size="auto")
    assert state.size == 16
    need = state.captioner.row_bytes(8)
    monkeypatch.setattr(_caption_local, "free_bytes", lambda: 4 * 5 * need)
    assert stage.setup(WorkerOptions()).size == 4
    monkeypatch.setattr(_caption_local, "free_bytes", lambda: 0)
    assert stage.setup(WorkerOptions()).size == 1
    monkeypatch.undo()
    assert 1 << 20 < free_bytes() < 1 << 50
    assert [power_of_two_below(v, 16) for v in (0, 0.5, 1, 2, 3, 15.9, 16, 1e12)] == [
        1, 1, 1, 2, 2, 8, 16, 16,
    ]  # fmt: skip


def test_a_batch_of_huge_pictures_goes_early(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, state = make(batch_size=8)
    expected = annotate(stage, state, batch(IMAGES[:8]))
    monkeypatch.setattr(_caption_local, "HELD_BYTES", 3 * 2000)
    state.captioner = limited = Limited(state.captioner)
    assert texts(annotate(stage, state, batch(IMAGES[:8]))) == texts(expected)
    assert set(limited.sizes) == {8}
    assert len(limited.sizes) > 1


def test_a_gated_run_and_a_wider_one(run: Any, folders: dict[str, str], tmp_path: Path) -> None:
    """Only the rows of the gate are captioned; a wider gate leaves their captions as they were."""
    source = tmp_path / "in"
    source.mkdir()
    for row, image in enumerate(IMAGES):
        (source / f"{row}.png").write_bytes(image)
    (source / "broken.png").write_bytes(IMAGES[0][:60])

    def captions(limit: int) -> dict[str, Any]:
        report = run(f"""
name: captions
source: {{use: folder, path: "{source}"}}
stages:
  image_info: {{}}
  caption:
    engine: hf
    model: "{folders["blip"]}"
    batch_size: 4
    max_tokens: 8
    keep_cut: true
    sampling: nucleus
    when: width >= {limit}
export:
  all: {{use: parquet}}
""")
        assert report.exit_code == 0
        files = sorted((tmp_path / "ws" / report.exports["all"]).glob("*.parquet"))
        rows = [
            r for f in files if f.name != "manifest.parquet" for r in pq.read_table(f).to_pylist()
        ]
        return {row["path"]: row for row in rows}

    narrow, wide = captions(60), captions(0)
    assert 0 < sum(row[TEXT] is not None for row in narrow.values()) < 10
    for path, row in narrow.items():
        if row[TEXT] is not None:
            assert wide[path][TEXT] == row[TEXT]
    codes = {path: row[f"{TEXT}_error"] for path, row in wide.items()}
    assert codes.pop("broken.png") == "not_selected"  # it has no width
    assert set(codes.values()) <= {None, "empty_caption"}
    assert [row[TEXT] is None for row in wide.values()].count(False) > 6


def test_what_enters_the_fingerprint(folders: dict[str, str]) -> None:
    stage = Caption(engine="hf", model=folders["blip"], num_gpus=0.25, num_threads=2, device="cuda")
    named = result_parameters(stage)
    assert not {"model", "device", "num_gpus", "url", "api_key_env", "retries"} & set(named)
    assert {"engine", "prompt", "seed", "batch_size", "precision", "num_threads"} <= set(named)
    assert (stage.resources.num_cpus, stage.resources.num_gpus) == (2, 0.25)
    assert stage.deterministic
    assert stage.model_digest() != Caption(engine="hf", model=folders["llava"]).model_digest()
    assert STAGES["caption"] is Caption
    assert pickle.loads(pickle.dumps(stage)) == stage


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_candidates": 3}, "use sampling: nucleus"),
        ({"num_candidates": 0}, "num_candidates=0"),
        ({"model": " "}, "model=' ' is not allowed"),
        ({"models": ["./a", "./b"]}, "models, one per fold, are for local engines"),
        ({"model": None, "models": ["./a"]}, "give one per fold, at least two"),
        ({"model": None}, "model='' is not allowed"),
        ({"column": "image"}, "column='image' cannot be written"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"batch_size": 0}, "batch_size=0; use 1 to 65536"),
        ({"url": "http://127.0.0.1/v1"}, "url and api_key_env go with engine='endpoint'"),
        ({"engine": "endpoint"}, "url=None is no server's"),
        ({"engine": "endpoint", "url": "file:///etc"}, "is no server's"),
        ({"engine": "endpoint", "url": "http://me:key@host/v1"}, "api_key_env"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Caption(**validate(Caption, {"engine": "hf", "model": "./m"} | values))


def test_a_model_that_is_not_there_is_an_error_before_work(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="projector"):
        Caption(engine="projector", model=str(tmp_path)).model_digest()
    with pytest.raises(SetupError, match="config.json is missing"):
        Caption(engine="hf", model=str(tmp_path)).model_digest()
