"""Causal language models: loaded without pickle or foreign code; tokens, and perplexity.

Tensor suffixes: B batch, T tokens, L width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.models.devices import DTYPES, Precision, choose_device
from winnow.models.hf_loading import (
    FROM_FOLDER,
    LOAD_ERRORS,
    check_whole,
    import_transformers,
    no_progress_bar,
)
from winnow.models.language_files import PACKAGED as PACKAGED
from winnow.models.language_files import LanguageFiles as LanguageFiles
from winnow.models.language_files import find_language_model as find_language_model


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    network: a transformers causal LM in evaluation mode (or one wrapped by peft). tokenizer: a
    transformers tokenizer. width: of its token embeddings. eos_id ends an answer; pad_id fills up
    (eos_id where the tokenizer has none); bos_id starts a text, None where the model has none.
    """

    network: nn.Module
    tokenizer: Any
    width: int
    eos_id: int
    pad_id: int
    bos_id: int | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.network.parameters()).dtype

    @property
    def context(self) -> int | None:
        """Most positions of one row, prefix and answer together; None where there is no limit."""
        length = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[operator, union-attr]
        return int(length) if length else None

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Return the token embeddings, (..., L) for ids of any shape."""
        table = self.network.get_input_embeddings()  # type: ignore[operator]
        embedded: torch.Tensor = table(tokens_BT.to(self.device))
        return embedded


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """exp of the mean negative log-likelihood per token. value is nan where nothing was counted.

    num_tokens: tokens that were counted. num_cut: texts longer than the model's context, of which
    only the first ``context`` tokens were read.
    """

    value: float
    num_tokens: int
    num_cut: int


def load_language_model(
    files: LanguageFiles,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    allow_random: bool = False,
    seed: int = 0,
) -> LanguageModel:
    """Load a model that was found, without unpickling and without code from its folder.

    ``allow_random``: a model without weights is built from its configuration; ``seed`` decides it.
    Fails: SetupError where transformers is missing, where the weights do not fit the architecture
    (a weight that the files lack would be random) or hold more than tensors, where the tokenizer
    has no end-of-text token.
    """
    where = choose_device(device)
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(files.folder, **FROM_FOLDER)
        tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, **FROM_FOLDER)
        if files.weights:
            network = _trained(files, config, DTYPES[precision])
        elif allow_random:
            network = _random(config, seed).to(DTYPES[precision])
        else:
            files = find_language_model(files.name)  # raises: there are no weights
    except LOAD_ERRORS as error:
        msg = f"the language model {files.name} cannot be loaded from {files.folder}: {error}"
        raise SetupError(msg) from error
    network.requires_grad_(False)
    return as_language_model(network.to(where).eval(), tokenizer, name=files.name)


def as_language_model(network: nn.Module, tokenizer: Any, *, name: str) -> LanguageModel:
    """Return a network and its tokenizer as one model.

    Fails: SetupError where there is no end-of-text token, or more tokens than embeddings.
    """
    if tokenizer.eos_token_id is None:
        msg = f"the tokenizer of {name} has no end-of-text token, so no answer could end"
        raise SetupError(msg)
    table = network.get_input_embeddings()  # type: ignore[operator]
    if len(tokenizer) > table.num_embeddings:
        msg = (
            f"the tokenizer of {name} has {len(tokenizer)} tokens and the model embeds "
            f"{table.num_embeddings}: they do not belong together"
        )
        raise SetupError(msg)
    pad_id = tokenizer.pad_token_id
    return LanguageModel(
        network=network,
        tokenizer=tokenizer,
        width=int(table.embedding_dim),
        eos_id=int(tokenizer.eos_token_id),
        pad_id=int(tokenizer.eos_token_id if pad_id is None else pad_id),
        bos_id=None if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id),
    )


def encode(model: LanguageModel, text: str) -> list[int]:
    """Return the tokens of a text, without any that start or end it.

    A text that spells a special token ("</s>") is read as plain characters.
    """
    return list(_encoded(model, text)["input_ids"])


def token_offsets(model: LanguageModel, text: str) -> list[tuple[int, int]]:
    """Return the (start, end) character offsets of each token of ``encode``.

    Fails: SetupError for a tokenizer that does not tell them (a slow one).
    """
    if not model.tokenizer.is_fast:
        msg = f"{type(model.tokenizer).__name__} tells no offsets; use a model with tokenizer.json"
        raise SetupError(msg)
    found = _encoded(model, text, return_offsets_mapping=True)["offset_mapping"]
    return [(int(start), int(end)) for start, end in found]


def decode(model: LanguageModel, tokens: Sequence[int]) -> str:
    """Return the text of tokens, without special ones and outer white space."""
    text: str = model.tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text.strip()


@torch.inference_mode()
def perplexity(model: LanguageModel, texts: Sequence[str], *, batch_size: int = 16) -> Perplexity:
    """Return the model's perplexity on texts: exp of the mean over all their tokens together.

    Counted: each token of each text given those before it, the first given the start token. Where
    a model has no start token, a text's first token is not counted. The end-of-text token is not.
    """
    rows = [encode(model, text) for text in texts]
    start = [] if model.bos_id is None else [model.bos_id]
    limit = model.context or max((len(row) + 1 for row in rows), default=1)
    inputs = [[*start, *row][:limit] for row in rows]
    num_cut = sum(len(row) + len(start) > limit for row in rows)
    inputs = sorted((row for row in inputs if len(row) > 1), key=len)
    total, count = 0.0, 0
    for first in range(0, len(inputs), batch_size):
        batch = inputs[first : first + batch_size]
        total -= float(_log_likelihood(model, batch))
        count += sum(len(row) - 1 for row in batch)
    value = math.exp(min(total / count, 700.0)) if count else math.nan
    return Perplexity(value=value, num_tokens=count, num_cut=num_cut)


def _log_likelihood(model: LanguageModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Sum over all tokens but the first of each row, float64; rows are padded on the right."""
    length = max(map(len, rows))
    tokens_BT = torch.tensor([[*row, *[model.pad_id] * (length - len(row))] for row in rows])
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = (torch.arange(length) < lengths_B[:, None]).to(model.device)
    tokens_BT = tokens_BT.to(model.device)
    logits = model.network(input_ids=tokens_BT, attention_mask=mask_BT.long()).logits
    logs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    chosen_BT = logs.gather(2, tokens_BT[:, 1:, None])[..., 0]
    return chosen_BT.masked_fill(~mask_BT[:, 1:], 0).double().sum()


def forward_accepts(network: nn.Module, name: str) -> bool:
    """Whether a network's forward takes an argument; looks through peft's wrapper."""
    base = network.get_base_model() if hasattr(network, "get_base_model") else network  # type: ignore[operator]
    return name in inspect.signature(base.forward).parameters


def _encoded(model: LanguageModel, text: str, **options: Any) -> Mapping[str, Any]:
    encoded: Mapping[str, Any] = model.tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False, **options
    )
    return encoded


def _trained(files: LanguageFiles, config: Any, dtype: torch.dtype) -> Any:
    transformers = _transformers()
    with no_progress_bar(transformers):
        network, loading = transformers.AutoModelForCausalLM.from_pretrained(
            files.folder,
            config=config,
            dtype=dtype,
            use_safetensors=files.safe,
            weights_only=True,
            output_loading_info=True,
            **FROM_FOLDER,
        )
    check_whole(files.name, loading)
    return network


def _random(config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _transformers().AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _transformers() -> Any:
    return import_transformers("language models need")
