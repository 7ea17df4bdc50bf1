"""Contrastive image-text models: open_clip's towers, loaded, built, saved and run.

Tensor suffixes: B batch, C channels, H height, W width, D embedding, T tokens.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import torch
from open_clip.factory import load_state_dict
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import Compose, Normalize

from winnow.contracts.errors import SetupError
from winnow.models.checkpoint import CONFIG_NAME, WEIGHTS_NAME, ModelFiles
from winnow.models.devices import DTYPES, Precision, choose_device
from winnow.models.hub_text import (
    save_text_files,
    saved_text_config,
    starts_from_weights,
    text_transformer,
)
from winnow.models.language_files import INSTALL
from winnow.models.pixels import eight_bits, on_white
from winnow.models.tokenizer import CLIP_VOCABULARY, MERGES_NAME, Tokenizer, write_merges

CONTEXT_LENGTH = open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH
_MAX_ASPECT = 16


class Preprocess:
    """open_clip's inference transform of a model, cut in two.

    The part that works on one Pillow image (resize, crop) runs in threads, per image; the part
    that is arithmetic (to float, normalise) runs once per batch on the model's device. Together
    they give the floats of the whole transform, bit for bit on the CPU.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        merged = {**asdict(PreprocessCfg()), **config}
        self.whole = image_transform_v2(PreprocessCfg(**merged), is_train=False)
        *geometry, to_tensor, normalize = self.whole.transforms
        if not isinstance(to_tensor, MaybeToTensor) or not isinstance(normalize, Normalize):
            msg = f"open_clip {open_clip.__version__} ends its transform in an unknown way"
            raise SetupError(msg)
        self._geometry = Compose(geometry)
        self._mean, self._std = torch.tensor(normalize.mean), torch.tensor(normalize.std)
        size: Any = merged["size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.height, self.width = int(height), int(width)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return one image as uint8 (H, W, 3) of the model's size."""
        return np.asarray(self._geometry(bounded_aspect(to_rgb(image))))

    def normalize(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """Return float32 (B, C, H, W), on the device of ``pixels_BHWC`` (uint8)."""
        device = pixels_BHWC.device
        mean, std = (v.to(device)[:, None, None] for v in (self._mean, self._std))
        return pixels_BHWC.permute(0, 3, 1, 2).contiguous().float().div(255).sub(mean).div(std)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an RGB image; transparent pixels show white, as on a web page.

    Pillow's own conversion drops the alpha channel and shows whatever colour lies under it, which
    is mostly black: on drawings with a transparent ground this changes the picture.
    """
    image = on_white(eight_bits(image))
    return image if image.mode == "RGB" else image.convert("RGB")


def bounded_aspect(image: Image.Image) -> Image.Image:
    """Cut the middle out of a strip: resizing a 1 x 80,000,000 image would take gigabytes."""
    width, height = image.size
    limit = _MAX_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))


class ContrastiveModel:
    """An open_clip model with its preprocessing and tokenizer, for inference."""

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        self.network, self.preprocess, self.tokenizer = network.eval(), preprocess, tokenizer
        self.device, self.dtype = device, DTYPES[precision]

    @torch.inference_mode()
    def embed_images(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        """Return unit vectors, float32 (B, D) on the model's device, of uint8 pixels."""
        images = self.preprocess.normalize(pixels_BHWC.to(self.device, non_blocking=True))
        features: torch.Tensor = self.network.encode_image(images.to(self.dtype))  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors, float32 (B, D) on the model's device."""
        tokens_BT = self.tokenizer(texts).to(self.device, non_blocking=True)
        features: torch.Tensor = self.network.encode_text(tokens_BT)  # type: ignore[operator]
        return nn.functional.normalize(features.float(), dim=-1)


def encode_text_short(network: nn.Module, tokens_BT: torch.Tensor, parts: int = 4) -> torch.Tensor:
    """Return ``network.encode_text(tokens_BT)`` without computing most of the padding.

    Sorts the captions by length and runs them in ``parts``, each cut after its longest caption.
    With a causal mask and the feature taken at the end-of-text token (the greatest id), what comes
    after that token cannot matter; any other text tower runs as it is. For training: the last bits
    depend on what else is in the batch.
    """
    causal = isinstance(network, open_clip.CLIP) and network.attn_mask is not None
    if not causal or network.text_pool_type != "argmax":  # type: ignore[union-attr]
        return network.encode_text(tokens_BT)  # type: ignore[operator, no-any-return]
    ends_B = tokens_BT.argmax(dim=1)
    order = ends_B.argsort()
    features = []
    for rows in order.chunk(parts):
        length = int(ends_B[rows].max()) + 1
        features.append(_encode_text(network, tokens_BT[rows, :length]))
    return torch.cat(features)[order.argsort()]


def _encode_text(network: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    """open_clip.CLIP.encode_text at the length of ``tokens_BT``."""
    length = tokens_BT.shape[1]
    x = network.token_embedding(tokens_BT) + network.positional_embedding[:length]
    x = network.transformer(x, attn_mask=network.attn_mask[:length, :length])
    x = network.ln_final(x)[torch.arange(len(x), device=x.device), tokens_BT.argmax(dim=1)]
    projection = network.text_projection
    if projection is None:
        return cast(torch.Tensor, x)
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def load_model(
    files: ModelFiles, *, device: str = "auto", precision: Precision = "fp32"
) -> ContrastiveModel:
    """Load a model that was found, through open_clip's own factory and without unpickling.

    Fails: SetupError where the weights do not fit the architecture or hold more than tensors.
    """
    where = choose_device(device)
    with tempfile.TemporaryDirectory() as name:
        # Exactly the files that the digest covers, under names that open_clip looks for.
        folder = Path(name)
        config = {"model_cfg": _found_text(files), "preprocess_cfg": dict(files.preprocess)}
        (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
        safe = files.weights.suffix == ".safetensors"
        link = folder / (WEIGHTS_NAME if safe else "pytorch_model.bin")
        link.symlink_to(files.weights.resolve())
        try:
            network = open_clip.create_model(
                f"local-dir:{folder}", precision=precision, device=where, weights_only=True
            )
        except _load_errors() as error:
            msg = f"the model {files.name} cannot be loaded from {files.weights}: {error}"
            raise SetupError(msg) from error
    preprocess = Preprocess(network.visual.preprocess_cfg)  # type: ignore[union-attr]
    tokenizer = load_tokenizer(files).bounded(network)
    return ContrastiveModel(network, preprocess, tokenizer, device=where, precision=precision)


def _found_text(files: ModelFiles) -> dict[str, Any]:
    """The ``model_cfg``, with the folder of a text tower that was saved with the model."""
    config = dict(files.config)
    if files.text_transformer is not None:
        named = {"hf_model_name": str(files.text_transformer), "hf_model_pretrained": False}
        config["text_cfg"] = {**config["text_cfg"], **named}
    return config


def _load_errors() -> tuple[type[Exception], ...]:
    import pickle

    from safetensors import SafetensorError

    damaged = (SafetensorError, pickle.UnpicklingError)
    return (RuntimeError, ValueError, OSError, ImportError, *damaged)


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """Return the tokenizer that goes with a model."""
    return text_tokenizer(files.config, files.tokenizer, name=files.name)


def text_tokenizer(config: Mapping[str, Any], folder: Path | None, *, name: str) -> Tokenizer:
    """Return the tokenizer of a ``model_cfg``, whose files are in ``folder``; None: open_clip's.

    Fails: SetupError where it cannot be loaded.
    """
    text = config["text_cfg"]
    length = int(text.get("context_length", CONTEXT_LENGTH))
    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict):
        msg = f"the tokenizer of {name}: tokenizer_kwargs is no mapping: {options!r}"
        raise SetupError(msg)
    if text.get("hf_tokenizer_name"):
        mode = text.get("tokenizer_mode")
        try:
            inner = HFTokenizer(str(folder), context_length=length, tokenizer_mode=mode, **options)
        except ImportError as error:
            msg = f"the tokenizer of {name} needs: {INSTALL} ({error})"
            raise SetupError(msg) from error
        except Exception as error:  # noqa: BLE001 - the tokenizers library raises it bare
            msg = f"the tokenizer of {name} cannot be loaded from {folder}: {error!r}"
            raise SetupError(msg) from error
        _check_tokens(inner, folder)
        size = None if text.get("hf_model_name") else int(text.get("vocab_size", CLIP_VOCABULARY))
        return Tokenizer(inner, length, num_tokens=size)
    if folder is not None:
        options = {**options, "bpe_path": str(folder / MERGES_NAME)}
    return Tokenizer(SimpleTokenizer(context_length=length, **options), length)


def _check_tokens(inner: HFTokenizer, folder: Path | None) -> None:
    """Fails: SetupError for a tokenizer without a token that every caption needs."""
    needed = ["bos_token", "eos_token"] if inner.tokenizer_mode == "clips" else ["pad_token"]
    needed += ["sep_token"] if inner.strip_sep_token else []
    for name in needed:
        if getattr(inner.tokenizer, name) is None:
            msg = f"the tokenizer in {folder} has no {name}; name one in its tokenizer_config.json"
            raise SetupError(msg)


def build_network(config: Mapping[str, Any], *, seed: int, folder: Path | None = None) -> nn.Module:
    """Return a fresh model of open_clip's classes for a ``model_cfg``; the seed decides it.

    A text tower that the configuration names on the hub (hf_model_name) starts from the weights
    there, as in open_clip, unless hf_model_pretrained is false; then ``folder``, the model's own,
    may hold its configuration.

    Fails: SetupError for a configuration that open_clip cannot build.
    """
    arguments = copy.deepcopy(dict(config))
    text = arguments["text_cfg"]
    custom = arguments.pop("custom_text", False) or "hf_model_name" in text
    transformer = text_transformer(text, folder, weights=starts_from_weights(text))
    if transformer is not None:
        text["hf_model_name"] = str(transformer.folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        problems = _load_errors() + (LookupError, AttributeError, TypeError, AssertionError)
        try:
            network = cast(nn.Module, kind(**arguments))
        except problems as error:
            named = "" if transformer is None else f", with the text tower {transformer.name}"
            msg = f"open_clip cannot build the architecture{named}: {error!r}"
            raise SetupError(msg) from error
    if transformer is not None:
        _check_places(network, int(text.get("context_length", CONTEXT_LENGTH)), transformer.name)
    return network


def _check_places(network: Any, length: int, name: str) -> None:
    places = getattr(network.text.config, "max_position_embeddings", None)
    if places and places < length:
        msg = (
            f"the text tower {name} has {places} places for tokens, and context_length is "
            f"{length}; set context_length in text_cfg to at most {places}"
        )
        raise SetupError(msg)


def load_weights(network: nn.Module, files: ModelFiles) -> None:
    """Copy a model's weights into a network of the same shape; vocabulary and all.

    A temperature and bias that the weights lack, or have and the network lacks, stay as they are;
    a captioning decoder (CoCa's) is left out.
    Fails: SetupError with the first tensor that does not fit.
    """
    try:
        given = load_state_dict(str(files.weights), weights_only=True)
    except _load_errors() as error:
        msg = f"the weights of {files.name} cannot be read from {files.weights}: {error}"
        raise SetupError(msg) from error
    own = network.state_dict()
    # The last one: numbers of places, which transformers saved with the weights until 4.31.
    left_out = ("text_decoder.", "logit_bias", "text.transformer.embeddings.position_ids")
    given = {k: v for k, v in given.items() if k in own or not k.startswith(left_out)}
    wanted = {k: v for k, v in own.items() if k in given or k != "logit_bias"}
    problem = next((k for k in [*wanted, *given] if _shape(wanted, k) != _shape(given, k)), None)
    if problem is None:
        network.load_state_dict(given, strict=False)
        # Where two names share one tensor, weights that differ there do not fit either.
        loaded = network.state_dict()
        unequal = (k for k, v in given.items() if not torch.equal(loaded[k], v.to(loaded[k])))
        shared = next(unequal, None)
        if shared is None:
            return
        msg = f"{files.name} has two transformers, but shared_transformer wants one ({shared})"
        raise SetupError(msg)
    msg = (
        f"the weights of {files.name} are of another architecture: {problem} is "
        f"{_shape(given, problem)} there and {_shape(wanted, problem)} in the model to train"
    )
    raise SetupError(msg)


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> str:
    return (
        " x ".join(map(str, tensors[name].shape)) or "one number" if name in tensors else "absent"
    )


def save_model(
    folder: Path,
    network: nn.Module,
    *,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    merges: Sequence[str] | None = None,
    tokenizer: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a folder that ``model: path/to/folder`` and open_clip's ``local-dir:`` load.

    ``merges``: the vocabulary, where it is not the one that ships with open_clip.  ``tokenizer``:
    the folder of a Hugging Face tokenizer, whose files are copied. Of a text tower that is a
    transformer of the hub the configuration is written too; open_clip's own loader does not look
    for it there and asks the hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    architecture = copy.deepcopy(dict(config))
    if merges is not None:
        write_merges(merges, folder / MERGES_NAME)
        # For open_clip's own loader; the path is relative to the folder. Winnow looks there itself.
        architecture["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": MERGES_NAME}
    architecture["text_cfg"] = saved_text_config(architecture["text_cfg"])
    named = architecture["text_cfg"].get("hf_tokenizer_name")
    save_text_files(folder, network, tokenizer if named else None)
    document = {"model_cfg": architecture, "preprocess_cfg": dict(preprocess)}
    (folder / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in network.state_dict().items():
        tensor = value.detach().cpu().to(dtype).contiguous()
        # A tensor with two names (a shared transformer) is written twice: safetensors, and
        # loaders that know of no sharing, want it so.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(tensors, folder / WEIGHTS_NAME)
    (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors leaves it readable by its owner only
