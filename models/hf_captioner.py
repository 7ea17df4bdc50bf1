"""Any image-to-text model of Hugging Face as a captioner: BLIP, GIT, ViT-GPT2, LLaVA, SmolVLM, ...

Weights are safetensors; code from a model's folder never runs.

Tensor suffixes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.contracts.trial import Generated
from winnow.models.conversation import CAPTION_PROMPT
from winnow.models.devices import DTYPES, Precision, choose_device
from winnow.models.generation import Sampling, choose_tokens, seeded_draws
from winnow.models.hf_captioner_files import CaptionerFiles
from winnow.models.hf_loading import FROM_FOLDER, LOAD_ERRORS, import_transformers, load_whole

_WRITERS = {"blip": "text_decoder", "blip-2": "language_model", "instructblip": "language_model"}
"""Model types whose ``generate`` hands over to a part of theirs, which has its own settings."""
_TRIAL_SIDE = 64

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class HfCaptioner:
    """A loaded model with its processor.

    prompt: what it is asked, "" for nothing. text: how that reaches it, after the chat template;
    None for pictures alone. chat: whether there is a template. ends: tokens that end a caption.
    """

    network: nn.Module
    processor: Any
    device: torch.device
    prompt: str
    text: str | None
    chat: bool
    ends: frozenset[int]

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Return what the network reads about RGB images, on the CPU: resized, tokenised, padded.

        Raises whatever the model's own processor raises for an image that it does not take.
        """
        options: dict[str, Any] = {"return_tensors": "pt"}
        if self.text is not None:
            options |= {"text": [self.text] * len(images), "padding": True}
        if self.chat and self._template_writes_start():
            options["add_special_tokens"] = False
        pictures = [[image] for image in images] if self.chat else list(images)
        features = self.processor(images=pictures, **options)
        return {name: v for name, v in features.items() if isinstance(v, torch.Tensor)}

    def generate(
        self,
        inputs: Inputs,
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        *,
        candidates: int = 1,
    ) -> list[Generated]:
        """Return ``candidates`` texts per image that was prepared, those of one side by side.

        One pass per candidate, so that a text does not depend on how many others there are. A
        text's random numbers depend on its seed and the step only. Log-likelihoods are those of the
        model's whole distribution, not of the part that was sampled from.
        """
        passes = [
            self._generate(inputs, sampling, None if seeds is None else seeds[number::candidates])
            for number in range(candidates)
        ]
        return [one for together in zip(*passes, strict=True) for one in together]

    def _generate(
        self, inputs: Inputs, sampling: Sampling, seeds: Sequence[int] | None
    ) -> list[Generated]:
        dtype = next(self.network.parameters()).dtype
        moved = {  # a copy: BLIP writes into its input_ids
            name: value.to(self.device, dtype if value.is_floating_point() else None, copy=True)
            for name, value in inputs.items()
        }
        chooser = _Chooser(sampling, seeds)
        with torch.inference_mode():
            self.network.generate(  # type: ignore[operator]
                **moved, max_new_tokens=sampling.max_tokens, logits_processor=[chooser]
            )
        tokenizer = _tokenizer(self.processor)
        return [
            Generated(
                text=tokenizer.decode(tokens, skip_special_tokens=True).strip(),
                log_likelihood=sum(logs),
                num_tokens=len(tokens),
                finished=finished,
            )
            for tokens, logs, finished in chooser.rows(self.ends)
        ]

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.type == "cuda"

    def row_bytes(self, max_tokens: int) -> int:
        """Return roughly what one row of a batch needs in memory: caches, scores, activations."""
        inputs = self.prepare([_trial_image()])
        num_prompt = _prompt_tokens(inputs)
        size, total = next(self.network.parameters()).element_size(), 0
        for config in _parts(self.network.config):
            pixels = getattr(config, "image_size", None)
            tokens = num_prompt + max_tokens
            if isinstance(pixels, int) and isinstance(getattr(config, "patch_size", None), int):
                tokens = (pixels // config.patch_size) ** 2 + 1
            width, heads = config.hidden_size, getattr(config, "num_attention_heads", 1)
            total += size * tokens * (2 * config.num_hidden_layers * width + 12 * width)
            total += size * tokens * tokens * heads + 16 * getattr(config, "vocab_size", 0)
        return total + sum(v.nbytes for v in inputs.values())

    def _template_writes_start(self) -> bool:
        start = getattr(_tokenizer(self.processor), "bos_token", None)
        return bool(start) and (self.text or "").startswith(str(start))


@dataclass(frozen=True, kw_only=True, slots=True)
class _TwoParts:
    """A processor for models that transformers knows none for: VisionEncoderDecoder.

    The picture is the encoder's, the text the beginning of what the decoder writes.
    """

    image_processor: Any
    tokenizer: Any

    def __call__(self, images: Sequence[Image.Image], **options: Any) -> dict[str, Any]:
        """Return pixels and, where there is a ``text``, its tokens."""
        found = dict(self.image_processor(images, return_tensors="pt"))
        if "text" in options:
            texts = self.tokenizer(options["text"], add_special_tokens=False, return_tensors="pt")
            found["decoder_input_ids"] = texts["input_ids"]  # all alike: nothing is padded
        return found


class _Chooser:
    """A logits processor that chooses the token itself, and remembers it with its likelihood.

    So nothing of the size of the vocabulary is kept, and no global random state is used.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int] | None) -> None:
        self._sampling = sampling
        self._draws_BT = None if seeds is None else seeded_draws(sampling, seeds, len(seeds))
        self._tokens: list[torch.Tensor] = []
        self._logs: list[torch.Tensor] = []
        self._only_BV: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = len(self._tokens)
        draws_B = None if self._draws_BT is None else self._draws_BT[:, step]
        # One that is nan is told by the sum of all: each pass over the vocabulary counts.
        broken_B = scores.sum(dim=1).isnan()
        if broken_B.any():
            scores = scores.masked_fill(broken_B[:, None], 0.0)
        tokens_B, logs_B = choose_tokens(scores, self._sampling, draws_B)
        logs_B = logs_B.masked_fill(broken_B, torch.nan)
        only_BV = self._all_but(tokens_B, scores)
        self._tokens.append(tokens_B)
        self._logs.append(logs_B)
        return only_BV

    def _all_but(self, tokens_B: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores that leave one token a row; written anew only where they change."""
        if self._only_BV is None or self._only_BV.shape != scores.shape:
            self._only_BV = torch.full_like(scores, -torch.inf)
        else:
            self._only_BV.scatter_(1, self._tokens[-1][:, None], -torch.inf)
        return self._only_BV.scatter_(1, tokens_B[:, None], 0.0)

    def rows(self, ends: frozenset[int]) -> Iterator[tuple[list[int], list[float], bool]]:
        """Yield each row's tokens up to its first end, their logarithms, whether it ended."""
        rows, logs = torch.stack(self._tokens, 1).tolist(), torch.stack(self._logs, 1).tolist()
        for tokens, values in zip(rows, logs, strict=True):
            end = next((i for i, token in enumerate(tokens) if token in ends), None)
            length = len(tokens) if end is None else end + 1
            yield tokens[:length], values[:length], end is not None


def load_captioner(
    files: CaptionerFiles,
    *,
    prompt: str | None = None,
    max_tokens: int = 1,
    device: str = "auto",
    precision: Precision = "fp32",
) -> HfCaptioner:
    """Load a model that was found, and try it on a grey picture.

    prompt: None = ``CAPTION_PROMPT`` for a model with a chat template, else nothing. Without a
    template the prompt reaches the model as it is written, its own image token included.
    The model's own settings of ``generate`` (beams, penalties, sampling) are not used.

    Fails: SetupError where transformers is missing, where the model is none that describes images,
    where weights are missing or the prompt does not fit.
    """
    where = choose_device(device)
    network, processor = _load(files, DTYPES[precision])
    template = getattr(processor, "chat_template", None)
    prompt = (CAPTION_PROMPT if template else "") if prompt is None else prompt
    tokenizer = _tokenizer(processor)
    tokenizer.padding_side = "left"
    try:
        text = _rendered(processor, prompt) if template else prompt or None
        captioner = HfCaptioner(
            network=network.to(where).eval(),
            processor=processor,
            device=where,
            prompt=prompt,
            text=text,
            chat=bool(template),
            ends=_plain_generation(network, tokenizer),
        )
        inputs = captioner.prepare([_trial_image()])
        captioner.generate(inputs, Sampling(max_tokens=2), None)
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        msg = (
            f"model={files.name!r} does not describe a plain picture with prompt={prompt!r}: "
            f"{error}. A model without a chat template wants its own image token in the prompt"
        )
        raise SetupError(msg) from error
    _check_length(captioner, inputs, max_tokens)
    return captioner


def _load(files: CaptionerFiles, dtype: torch.dtype) -> tuple[Any, ...]:
    who = "engine=hf needs"
    transformers = import_transformers(who)
    # 4.x knows some models by the second name only.
    names = ("AutoModelForImageTextToText", "AutoModelForVision2Seq")
    problem: SetupError | None = None
    for name in names:
        if not hasattr(transformers, name):
            continue
        try:
            network, processor = load_whole(
                files, (name, "AutoProcessor"), dtype=dtype, kind="image-to-text", who=who
            )
        except SetupError as error:
            problem = problem or error
        else:
            whole = hasattr(processor, "image_processor")
            return network, processor if whole else _two_parts(transformers, files)
    assert problem is not None
    raise problem


def _two_parts(transformers: Any, files: CaptionerFiles) -> _TwoParts:
    try:
        return _TwoParts(
            image_processor=transformers.AutoImageProcessor.from_pretrained(
                files.folder, **FROM_FOLDER
            ),
            tokenizer=transformers.AutoTokenizer.from_pretrained(files.folder, **FROM_FOLDER),
        )
    except LOAD_ERRORS as error:
        msg = (
            f"model={files.name!r}: {files.folder} does not say how its pictures are prepared and "
            f"its text is written (preprocessor_config.json, a tokenizer): {error}"
        )
        raise SetupError(msg) from error


def _rendered(processor: Any, prompt: str) -> str:
    words = [{"type": "text", "text": prompt}] if prompt else []
    turn = {"role": "user", "content": [{"type": "image"}, *words]}
    text: str = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    return text


def _plain_generation(network: Any, tokenizer: Any) -> frozenset[int]:
    """Make every part generate greedily with a cache; return the tokens that end a caption."""
    from transformers import GenerationConfig

    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    for module in network.modules():
        old = getattr(module, "generation_config", None)
        if isinstance(old, GenerationConfig):
            values = {name: getattr(old, name, None) for name in kept}
            if values["eos_token_id"] is None:
                values["eos_token_id"] = tokenizer.eos_token_id
            if values["pad_token_id"] is None:
                values["pad_token_id"] = next(iter(_ids(values["eos_token_id"])), 0)
            plain = GenerationConfig(**{k: v for k, v in values.items() if v is not None})
            plain.use_cache = True
            module.generation_config = plain
    if network.config.model_type == "blip":  # its generate says so itself
        return frozenset({int(network.config.text_config.sep_token_id)})
    part = _WRITERS.get(network.config.model_type)
    writer = getattr(network, part) if part else network
    return frozenset(_ids(writer.generation_config.eos_token_id))


def _ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else [int(v) for v in value]


def _check_length(captioner: HfCaptioner, inputs: Inputs, max_tokens: int) -> None:
    config = captioner.network.config.get_text_config()  # type: ignore[operator, union-attr]
    limit = getattr(config, "max_position_embeddings", None)
    used = _prompt_tokens(inputs)
    if limit and used + max_tokens > limit:
        msg = (
            f"the model has {limit} positions, of which prompt and picture take {used}; "
            f"max_tokens={max_tokens} is more than are left"
        )
        raise SetupError(msg)


def _prompt_tokens(inputs: Inputs) -> int:
    if "input_ids" in inputs:
        return inputs["input_ids"].shape[1]
    # A start stands before what the decoder is given.
    return 1 + (inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 0)


def _parts(config: Any) -> Iterable[Any]:
    """The configurations of a model's networks: those with layers of a width."""
    inner = [config, *vars(config).values()]
    return [c for c in inner if hasattr(c, "num_hidden_layers") and hasattr(c, "hidden_size")]


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _trial_image() -> Image.Image:
    return Image.new("RGB", (_TRIAL_SIDE, _TRIAL_SIDE), (128, 128, 128))
