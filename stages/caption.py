"""Synthetic captions, by a projector model, a model of Hugging Face, or a server."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import Media
from winnow.contracts.parameters import effort, later, result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.models.conversation import CAPTION_PROMPT
from winnow.stages import _clip_batch
from winnow.stages._caption_asking import Asking, with_prompts
from winnow.stages._caption_endpoint import (
    TRANSIENT_CODES,
    EndpointOptions,
    EndpointWorker,
    ImageFormat,
    parse_endpoint,
    server_name,
)
from winnow.stages._caption_engines import captioner_digest, load_captioner
from winnow.stages._caption_folds import FoldedWorker
from winnow.stages._caption_local import MOST_ON_GPU, BatchSize, LocalOptions, LocalWorker
from winnow.stages._caption_prompt import Prompt, asked_text, named_column, parse_prompt
from winnow.stages._caption_rows import columns
from winnow.stages._clip_batch import Device, Precision
from winnow.stages._conversations import Kind

Engine = Literal["projector", "hf", "endpoint"]
CaptionWorker = LocalWorker | FoldedWorker | EndpointWorker
NAME = "caption"


@register_stage(NAME, version=3)
@dataclass(frozen=True, kw_only=True, slots=True)
class Caption(Stage):
    """Describe each image in words, once or several times.

    Reads:   <image_column>: large_binary, encoded bytes.
             <fold>: string, with ``models`` only.
             Of engine=endpoint: what ``prompt`` names, string or list<string>.
    Writes:  <column> (synthetic_captions): list<string>, 1 to num_candidates texts, none twice, the
                 one most likely per token first; null exactly when <column>_error is set.
             <column>_log_likelihood (synthetic_captions_log_likelihood): list<float32>, of each
                 text, <= 0: the sum of the natural logarithms of its tokens' probabilities under
                 the model's whole distribution at temperature 1, the end-of-text token included
                 where it came; a server's are summed as it gives them. An element is null where
                 it gives none; such texts come last, in the server's order.
             <column>_model (synthetic_captions_model): string, the model's digest; of a server
                 "host:port model".
             <column>_prompt (synthetic_captions_prompt): string, what was asked, "" for nothing;
                 with the row's own words where the prompt names columns.
             <column>_error (synthetic_captions_error): string; null, or a code below. The other
                 columns are null where it is set.
    Cost:    a forward pass over picture and prompt per batch (engine hf: per candidate), one pass
             per token until the last row has ended; the model's own share of a GPU where num_gpus
             says so. engine=endpoint: one request per row and attempt.
    Fails:   a bad row never raises. Codes (* = transient: ``--retry-failed`` asks again):
        missing, too_large, undecodable   the image; undecodable too where the model's own
                             preprocessing does not take it, or memory does not hold it alone
        empty_caption        no candidate has a word
        too_long             all candidates were cut at max_tokens (or were empty) and keep_cut is
                             not set
        not_finite           the model overflows (fp16) or its server says so
        unknown_fold         no model for that fold
        Of engine=endpoint only:
        unreachable        * no connection, or it was lost; or the server was left alone for a
                             while: 20 requests in a row were lost, or timed out in its silence
        timeout            * timeout_s is over, pauses and retries included
        garbage            * an answer that is not the documented JSON, or over 1 MiB
        refused              the server declines to describe it (content filter)
        http_<status>        any status but 200; * 408, 425, 429, 500, 502-504, 520-524
             RecipeError for parameters that cannot be meant; SetupError where a model's files,
             transformers or the API key are missing, where a prompt does not fit the model, where
             the server cannot be reached before the run; ShardError where memory does not hold a
             batch.

    engine="projector": model is the folder of a trained projector.
    models, fold: in place of ``model``, K captioners that were trained on folds of these very rows,
        model k on all folds but "k": it captions fold "k". A row whose fold is null trained none,
        and hash(uid) chooses. Not for engine="endpoint".
    engine="hf": any image-to-text model (BLIP, BLIP-2, GIT, ViT-GPT2, LLaVA, SmolVLM ...) by folder
        (./folder) or by its name on the hub (org/name, org/name@revision); safetensors only, no
        code from there.
        Its own settings of ``generate`` (beams, penalties) are not used. Needs the extra
        ``captions``.
    engine="endpoint": model is the name by which an OpenAI-compatible server (vLLM and others) at
        ``url`` (http://127.0.0.1:8000/v1) knows it. The name is in the fingerprint; the server's
        address, which may change from run to run, is not.
    prompt: null = what a projector was trained with; "Describe the picture." for models with a chat
        template and servers; nothing for other models, where text stands before the caption as it
        is written (BLIP).
        Of engine="endpoint" it may hold the row's own words, such as labels and captions: {column}
        stands for a string, {column:list} for a list<string>, an element a line; a null is no words
        (``when`` leaves such rows out). Write a brace that is meant as it is twice. The words go to
        the server as they are. Other engines take braces as they stand, but refuse {column}.
    instruction: ask for instruction data of this kind, as the stage ``instructions`` reads it from
        <column>, by the packaged prompt of ``winnow.stages._written_turns``; ``prompt``, where
        there is one, comes before it. Such answers are long: max_tokens of 256 (detail) to 512.
    sampling: "greedy", or "nucleus": from the likeliest tokens that together have top_p (Holtzman
        et al. 2020), at this temperature. seed: a text's random numbers depend on seed, uid,
        candidate and place only, so retries, other batches and orders give the same. (A server gets
        a seed of seed and uid.)
    max_tokens: longest text, end included. keep_cut: keep texts that were cut there.
    batch_size: pictures at once. A batch is always that many, padded where rows are lacking. The
        last bits of a log-likelihood depend on that number and on the row's place in the batch
        (engine projector, whose rows leave when they end, and models with more tokens for larger
        pictures: also on the other rows), and the text does where two words are equally likely to
        those bits. Nothing else depends on the batch.
        "auto": 128 on a GPU, halved (and the batch done again) as often as memory demands; on the
        CPU 16, or fewer by an estimate of the memory. There the last bits depend on the memory too:
        give a number where two machines must agree to the byte.
    model (its content), precision, num_threads, device, num_gpus: as for ``clip_score``.
    api_key_env: name of the environment variable, on every worker, that holds the server's key.
        The key itself never stands in a recipe or file.
    concurrency, retries, timeout_s: requests at once of each worker; further attempts, with
        doubling pauses and as the server's Retry-After says; the deadline in seconds for all of a
        row's requests and pauses. image_side: what is sent has at most this longer side, as
        image_format. logprobs: ask for them.
    column: another name makes room for a second captioner in the same recipe.
    """

    transient_codes: ClassVar[frozenset[str]] = TRANSIENT_CODES

    engine: Engine = result()
    model: str | None = effort(None)
    models: tuple[str, ...] = effort(())
    fold: str = result("fold")
    prompt: str | None = result(None)
    instruction: Kind | None = later(None)
    sampling: Literal["greedy", "nucleus"] = result("greedy")
    num_candidates: int = result(1)
    top_p: float = result(0.9)
    temperature: float = result(1.0)
    seed: int = result(0)
    max_tokens: int = result(64)
    keep_cut: bool = result(False)
    image_column: str = result("image")
    column: str = result("synthetic_captions")
    batch_size: BatchSize = result("auto")
    precision: Precision = result("fp32")
    num_threads: int = result(1)
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    url: str | None = effort(None)
    api_key_env: str | None = effort(None)
    image_side: int = result(1024)
    image_format: ImageFormat = result("jpeg")
    logprobs: bool = result(True)
    concurrency: int = effort(16)
    retries: int = effort(4)
    timeout_s: float = effort(120.0)

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        _clip_batch.check_options(
            NAME,
            batch_size=1 if isinstance(self.batch_size, str) else self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        _clip_batch.check_column(NAME, self.column, (self.image_column, self.fold))
        self._check_prompt()
        self._check_models()
        _require(1 <= self.num_candidates <= 64, "num_candidates", self.num_candidates, "in 1..64")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, at most 1")
        _require(0 < self.temperature <= 10, "temperature", self.temperature, "above 0, at most 10")
        _require(1 <= self.max_tokens <= 4096, "max_tokens", self.max_tokens, "in 1..4096")
        if self.sampling == "greedy" and self.num_candidates > 1:
            msg = (
                f"caption: num_candidates={self.num_candidates} with sampling='greedy' would be "
                "one text that many times; use sampling: nucleus"
            )
            raise RecipeError(msg)
        self._check_endpoint()

    def _check_models(self) -> None:
        if self.models and (self.model is not None or self.engine == "endpoint"):
            msg = "caption: models, one per fold, are for local engines, and stand for model"
            raise RecipeError(msg)
        if len(self.models) == 1:
            msg = f"caption: models={list(self.models)}; give one per fold, at least two"
            raise RecipeError(msg)
        for name in self.models or (self.model or "",):
            _require(bool(name.strip()), "model", name, "a folder or a name")
        _require(bool(self.fold), "fold", self.fold, "the name of a string column")

    def _check_prompt(self) -> None:
        if self.engine != "endpoint":
            named = named_column(self.prompt or "")
            if named is not None:
                msg = f"caption: prompt has {named}; only engine='endpoint' puts columns into it"
                raise RecipeError(msg)
            return
        taken = {"uid", self.image_column, *self.writes.names}
        own = [name for name in self._row_prompt.columns if name in taken]
        if own:
            msg = (
                f"caption: prompt has {{{own[0]}}}, which is no text, or what this stage writes; "
                "name columns of text that are there before it"
            )
            raise RecipeError(msg)

    def _check_endpoint(self) -> None:
        if self.engine == "endpoint":
            parse_endpoint(self.url)
        elif self.url is not None or self.api_key_env is not None:
            msg = f"caption: url and api_key_env go with engine='endpoint', not {self.engine!r}"
            raise RecipeError(msg)
        _require(1 <= self.concurrency <= 1024, "concurrency", self.concurrency, "in 1..1024")
        _require(0 <= self.retries <= 20, "retries", self.retries, "in 0..20")
        _require(0 < self.timeout_s <= 3600, "timeout_s", self.timeout_s, "above 0, at most 3600")
        _require(16 <= self.image_side <= 8192, "image_side", self.image_side, "in 16..8192")

    @property
    def deterministic(self) -> bool:  # type: ignore[override]
        """A server may answer otherwise another day."""
        return self.engine != "endpoint"

    @property
    def reads(self) -> pa.Schema:
        """The image's bytes, the fold where there is a model for each, what the prompt names."""
        named = self._row_prompt.columns if self.engine == "endpoint" else {}
        fold = {self.fold: pa.string()} if self.models else {}
        return pa.schema({self.image_column: pa.large_binary(), **fold, **named})

    @property
    def writes(self) -> pa.Schema:
        """Texts, log-likelihoods, model, prompt, error."""
        return pa.schema(
            {
                self.column: pa.list_(pa.string()),
                f"{self.column}_log_likelihood": pa.list_(pa.float32()),
                f"{self.column}_model": pa.string(),
                f"{self.column}_prompt": pa.string(),
                f"{self.column}_error": pa.string(),
            }
        )

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for a server's rows."""
        if self.engine == "endpoint":
            return Resources()
        return _clip_batch.resources(
            num_threads=self.num_threads, num_gpus=self.num_gpus, device=self.device
        )

    @property
    def batch_rows(self) -> int | None:
        """Whole batches, for a model whose last bits depend on their shape; two at least, so that
        one is prepared while another is written."""
        if self.engine == "endpoint":
            return None
        size = MOST_ON_GPU if isinstance(self.batch_size, str) else self.batch_size
        return max(2, 2 * MOST_ON_GPU // size) * size

    @property
    def notes(self) -> tuple[str, ...]:
        """What is sent elsewhere."""
        if self.engine != "endpoint":
            return ()
        where = server_name(parse_endpoint(self.url))
        what = ", ".join(["every image", *self._row_prompt.columns])
        return (f"sends {what} to {where}, {self.concurrency} at once from each worker",)

    def model_digest(self) -> str:
        """Digest of weights, configuration, tokenizer, preprocessing; a server's model by name."""
        if self.engine == "endpoint":
            return f"endpoint {self.model}"
        found = [captioner_digest(self.engine, name) for name in self._names]
        if not self.models:
            return found[0]
        return hashlib.blake2b("\n".join(found).encode(), digest_size=16).hexdigest()

    @property
    def _row_prompt(self) -> Prompt:
        asked = asked_text(self.prompt, self.instruction)
        return parse_prompt(CAPTION_PROMPT if asked is None else asked)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.models or (self.model or "",)

    def preflight(self, sample: pa.RecordBatch, options: WorkerOptions) -> None:
        """Raise SetupError where the server cannot be reached or refuses the key."""
        worker = self._endpoint()
        try:
            worker.check()
        finally:
            worker.close()

    def setup(self, options: WorkerOptions) -> CaptionWorker:
        """Load the model, or open the connections to the server."""
        if self.engine == "endpoint":
            return self._endpoint()
        from winnow.models.generation import Sampling

        nucleus = self.sampling == "nucleus"
        sampling = Sampling(
            max_tokens=self.max_tokens,
            top_p=self.top_p if nucleus else None,
            temperature=self.temperature if nucleus else 1.0,
        )
        local = LocalOptions(
            batch_size=self.batch_size,
            num_candidates=self.num_candidates,
            sampling=sampling,
            seed=self.seed,
            keep_cut=self.keep_cut,
            num_threads=self.num_threads,
        )
        workers = [self._local(name, local) for name in self._names]
        return FoldedWorker(workers) if self.models else workers[0]

    def annotate(self, batch: pa.RecordBatch, state: CaptionWorker, media: Media) -> pa.RecordBatch:
        """Caption one batch."""
        uids = batch.column("uid").to_pylist()
        images = media.images(self.image_column)
        if isinstance(state, FoldedWorker):
            folds = batch.column(self.fold).to_pylist()
            return columns(state.caption(uids, images, folds), state.prompt, self.writes)
        if isinstance(state, LocalWorker):
            return columns(state.caption(uids, images), state.captioner.prompt, self.writes)
        prompts = self._row_prompt.texts(batch) if self._row_prompt.columns else None
        asking = Asking(
            seed=self.seed,
            image_side=self.image_side,
            image_format=self.image_format,
            keep_cut=self.keep_cut,
        )
        rows = asking.ask(state, uids, images, prompts)
        out = columns(rows, state.options.prompt, self.writes)
        return out if prompts is None else with_prompts(out, prompts, f"{self.column}_prompt")

    def _local(self, name: str, options: LocalOptions) -> LocalWorker:
        captioner = load_captioner(
            self.engine,
            name,
            prompt=asked_text(self.prompt, self.instruction),
            max_tokens=self.max_tokens,
            num_threads=self.num_threads,
            device=self.device,
            precision=self.precision,
        )
        return LocalWorker(captioner, options, digest=captioner_digest(self.engine, name))

    def _endpoint(self) -> EndpointWorker:
        key = None
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                msg = (
                    f"caption: the environment variable {self.api_key_env} (api_key_env) is not "
                    "set here; set it on every machine that runs workers"
                )
                raise SetupError(msg)
        nucleus = self.sampling == "nucleus"
        request: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "n": self.num_candidates,
            "temperature": self.temperature if nucleus else 0.0,
        }
        request |= {"top_p": self.top_p} if nucleus else {}
        request |= {"logprobs": True} if self.logprobs else {}
        return EndpointWorker(
            EndpointOptions(
                url=parse_endpoint(self.url),
                model=self.model or "",
                prompt=self._row_prompt.constant,
                request=request,
                api_key=key,
                timeout_s=self.timeout_s,
                concurrency=self.concurrency,
                retries=self.retries,
            )
        )


def _require(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        msg = f"caption: {name}={value!r} is not allowed; it must be {allowed}"
        raise RecipeError(msg)
