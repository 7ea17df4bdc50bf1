"""Where a projector model's files are, what they contain, and how they are written and read.

A folder holds ``projector.json`` (parts, sizes, digests of tower and language model),
``connector.safetensors`` (with the gated layers, or second connector and null embeddings, where
there are any), and, where they were trained, ``lm.safetensors`` and ``lora.safetensors``. Towers
and language model are not in it unless they were copied; they must be what they were.

Nothing here imports torch until a model is saved or loaded: plans ask for digests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.models.conversation import CAPTION_PROMPT
from winnow.models.file_digest import file_digest

if TYPE_CHECKING:
    import torch

    from winnow.models.projector_network import Projector

CONFIG_NAME = "projector.json"
CONNECTOR_NAME = "connector.safetensors"
LANGUAGE_NAME = "lm.safetensors"
LORA_NAME = "lora.safetensors"
TOWER_FOLDER, LANGUAGE_FOLDER, AUDIO_FOLDER = "tower", "language_model", "audio_tower"
FORMAT = 1

Precision = Literal["fp32", "bf16", "fp16"]
_NAMES = ("tower", "language_model")
_AUDIO = ("audio_tower", "audio_connector", "audio_queries")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorConfig:
    """The parts of a projector model and their sizes.

    tower, max_tiles: see ``winnow.models.vision_tower``. language_model: see
    ``winnow.models.language_model``. connector, num_queries, depth, heads: see
    ``winnow.models.connectors``; heads are those of the gated layers too. cross_every: a gated
    layer before every n-th layer of the language model, for connectors that are no prefix. prompt:
    what the model is asked where nothing else is said. max_text_tokens: longest text in training;
    what is over is cut. lora_rank, lora_alpha: Hu et al. 2021. audio_tower: a folder that the
    trainer "audio" wrote, or None; audio_connector, audio_queries: the second connector, see
    ``winnow.models.projector_audio``; depth and heads are those of the first.
    """

    tower: str
    language_model: str
    connector: str = "mlp"
    num_queries: int = 32
    depth: int = 2
    heads: int = 4
    max_tiles: int = 0
    cross_every: int = 1
    prompt: str = CAPTION_PROMPT
    max_text_tokens: int = 1024
    lora_rank: int = 8
    lora_alpha: float = 16.0
    audio_tower: str | None = None
    audio_connector: str = "mlp"
    audio_queries: int = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorFiles:
    """A projector model that was found: nothing is loaded yet. document: its projector.json."""

    name: str
    folder: Path
    document: Mapping[str, Any]

    @property
    def config(self) -> ProjectorConfig:
        """Its parts and sizes, as it was built."""
        known = {field.name for field in fields(ProjectorConfig)}
        given = self.document["config"]
        return ProjectorConfig(**{k: v for k, v in given.items() if k in known})

    @property
    def weights(self) -> list[Path]:
        """The files with what was trained, in a fixed order."""
        names = [CONNECTOR_NAME]
        names += [LANGUAGE_NAME] if self.document["language_model"]["saved"] else []
        names += [LORA_NAME] if "lora" in self.document["trained"] else []
        return [self.folder / name for name in names]

    @property
    def parts(self) -> tuple[str, ...]:
        """What the model is made of, beside what was trained."""
        return (*_NAMES, *(["audio_tower"] if "audio_tower" in self.document else []))

    def part(self, what: str) -> str:
        """Return where one of ``parts`` is: the copy in the folder, else its name."""
        entry = self.document[what]
        copied = entry["copy"]
        return str(self.folder.resolve() / copied) if copied else str(entry["name"])

    def digest(self) -> str:
        """Return 32 hex digits over sizes, trained weights, and the digests of towers and language
        model; not over names and paths, nor whether parts were copied."""
        sizes = {k: v for k, v in self.document["config"].items() if k not in self.parts}
        parts = {what: self.document[what]["digest"] for what in self.parts}
        digest = hashlib.blake2b(
            json.dumps([FORMAT, sizes, parts], sort_keys=True).encode(), digest_size=16
        )
        for path in self.weights:
            digest.update(f"{path.name}\0".encode() + file_digest(path, 64))
        return digest.hexdigest()


def find_projector(name: str) -> ProjectorFiles:
    """Return the projector model in a folder, from its small files alone.

    Fails: SetupError where there is none, one of another format, or one whose weights are missing.
    """
    folder = user_path(name)
    path = folder / CONFIG_NAME
    if not path.is_file():
        msg = f"{name!r} is no projector model: {path} is missing; give the folder of a trained one"
        raise SetupError(msg)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SetupError(msg) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        msg = f"{path} is not of format {FORMAT}, which this version reads; train the model again"
        raise SetupError(msg)
    files = ProjectorFiles(name=name, folder=folder, document=document)
    try:
        missing = next((p for p in files.weights if not p.is_file()), None)
        _ = files.config, [files.part(what) for what in files.parts]
    except (KeyError, TypeError) as error:
        msg = f"{path} lacks what a projector model needs: {error}"
        raise SetupError(msg) from error
    if missing is not None:
        msg = f"{name!r} is no whole projector model: {missing} is missing"
        raise SetupError(msg)
    return files


def projector_digest(folder: str | Path) -> str:
    """Return the digest of the model in a folder: of its content only."""
    return find_projector(str(folder)).digest()


def save_projector(folder: str | Path, projector: Projector, *, copy: bool = False) -> None:
    """Write what was trained, and what tower and language model have to be.

    ``copy``: put tower and language model in too where they are local folders, so that the folder
    stands alone; what is packaged or on a hub is named either way.
    Fails: SetupError where adapters were merged into the weights, which cannot be undone exactly.
    """
    from winnow.models.lora import is_merged, lora_weights, weight_name

    if is_merged(projector.network):
        msg = "adapters were merged into this model's weights; save it before merge_lora"
        raise SetupError(msg)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _write(target / CONNECTOR_NAME, connector_state(projector))
    saved = projector.random_language or "lm" in projector.trained
    if saved:
        state = projector.network.state_dict()
        adapters = lora_weights(projector.network)
        kept = {weight_name(k): v for k, v in state.items() if k not in adapters}
        _write(target / LANGUAGE_NAME, _without_aliases(kept))
    if "lora" in projector.trained:
        _write(target / LORA_NAME, lora_weights(projector.network))
    _write_document(target, projector, saved=saved, copy=copy)


def load_projector(
    folder: str | Path, device: str = "auto", *, precision: Precision = "fp32"
) -> Projector:
    """Load a saved model, in evaluation mode.

    Fails: SetupError where tower or language model are not there or not what they were, where
    weights are damaged or of another shape, where transformers or peft are missing.
    """
    from winnow.models.projector import build_projector

    files = find_projector(str(folder))
    given = {what: files.part(what) for what in files.parts}
    config = ProjectorConfig(**{**asdict(files.config), **given})
    saved = bool(files.document["language_model"]["saved"])
    projector = build_projector(
        config, seed=0, device=device, precision=precision, allow_random_lm=saved
    )
    for what, name in given.items():
        found = _found_digest(projector, what)
        _check_digest(what, name, found, str(files.document[what]["digest"]))
    _load_connector(projector, files.folder / CONNECTOR_NAME)
    if saved:
        _load_language(projector.network, files.folder / LANGUAGE_NAME)
    if "lora" in files.document["trained"]:
        projector.add_lora()
        _load_lora(projector.network, files.folder / LORA_NAME)
    projector.set_trainable(files.document["trains"])
    projector.trained = frozenset(files.document["trained"])
    return projector.eval()


def connector_state(projector: Projector) -> dict[str, torch.Tensor]:
    """Return the weights of connectors, gated layers and null embeddings, by name; not copies."""
    parts = {"connector": projector.connector.state_dict()}
    if projector.gated is not None:
        parts["gated"] = projector.gated.state_dict()
    if projector.audio is not None:
        parts["audio"] = projector.audio.learned_state()
    return {
        f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()
    }


def _write_document(target: Path, projector: Projector, *, saved: bool, copy: bool) -> None:
    from winnow.models.checkpoint import HUB_PREFIX
    from winnow.models.language_files import is_path

    config = projector.config
    tower = _part(
        config.tower,
        projector.tower_digest,
        target / TOWER_FOLDER,
        is_path="/" in config.tower and not config.tower.startswith(HUB_PREFIX),
        copied=_copy_tower if copy else None,
    )
    language = _part(
        config.language_model,
        projector.language_digest,
        target / LANGUAGE_FOLDER,
        is_path=is_path(config.language_model),
        copied=_copy_language if copy else None,
    )
    audio = _audio_part(projector, target / AUDIO_FOLDER, copy=copy)
    document = {
        "format": FORMAT,
        "config": {k: v for k, v in asdict(config).items() if audio or k not in _AUDIO},
        "tower": tower,
        "language_model": {**language, "saved": saved},
        **audio,
        "trained": sorted(projector.trained),
        "trains": projector.trains,
    }
    text = json.dumps(document, indent=2) + "\n"
    (target / CONFIG_NAME).write_text(text, encoding="utf-8")


def _part(
    name: str,
    digest: str,
    place: Path,
    *,
    is_path: bool,
    copied: Callable[[str, Path], str] | None,
) -> dict[str, Any]:
    """Describe a part; a local one by its absolute path, because a run may start anywhere.

    place: the folder in the projector's own, for a copy.
    """
    path = user_path(name)
    if not is_path or not path.exists():
        return {"name": name, "digest": digest, "copy": None}
    whole, copy = str(path.resolve()), None
    if Path(whole).is_relative_to(place.resolve()):
        copy = str(Path(whole).relative_to(place.parent.resolve()))
    elif copied is not None:
        place.mkdir(exist_ok=True)
        copy = copied(name, place)
    return {"name": whole, "digest": digest, "copy": copy}


def _copy_tower(name: str, folder: Path) -> str:
    """Copy what a tower is made of, and nothing else that lies there; return its place."""
    from winnow.models.checkpoint import CONFIG_NAME as TOWER_CONFIG
    from winnow.models.checkpoint import find_model

    files = find_model(name)
    given = user_path(name)
    config = files.weights.with_suffix(".json")
    if not given.is_file() or not config.is_file():
        config = files.weights.parent / TOWER_CONFIG
    shutil.copyfile(config, folder / TOWER_CONFIG)
    for path in [files.weights, *files.tokenizer_files()]:
        if files.tokenizer is not None or path == files.weights:
            shutil.copyfile(path, folder / path.name)
    return f"{TOWER_FOLDER}/{files.weights.name}"


def _copy_language(name: str, folder: Path) -> str:
    from winnow.models.language_files import find_language_model

    files = find_language_model(name, allow_random=True)
    for path in [files.config, *files.weights, *files.tokenizer]:
        shutil.copyfile(path, folder / path.name)
    return LANGUAGE_FOLDER


def _audio_part(projector: Projector, place: Path, *, copy: bool) -> dict[str, Any]:
    """Describe the audio tower; {} where there is none."""
    name, audio = projector.config.audio_tower, projector.audio
    if audio is None or name is None:
        return {}
    copied = _copy_audio if copy else None
    return {"audio_tower": _part(name, audio.tower.digest(), place, is_path=True, copied=copied)}


def _copy_audio(name: str, folder: Path) -> str:
    from winnow.models.projector_audio import find_audio_tower

    find_audio_tower(name).copy(folder)
    return AUDIO_FOLDER


def _found_digest(projector: Projector, what: str) -> str:
    audio = projector.audio
    digests = {"tower": projector.tower_digest, "language_model": projector.language_digest}
    return digests[what] if audio is None or what in digests else audio.tower.digest()


def _check_digest(what: str, name: str, found: str, expected: str) -> None:
    if found != expected:
        msg = (
            f"the {what} {name} is not the one that the projector was trained with (its digest is "
            f"{found}, then it was {expected}); put the old files back, or train again"
        )
        raise SetupError(msg)


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, path)
    path.chmod(0o644)  # safetensors leaves it readable by its owner only


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        msg = f"{path} cannot be read: {error}"
        raise SetupError(msg) from error


def _without_aliases(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out all but the first name of each tensor (a head that is the embedding)."""
    seen: set[tuple[int, int]] = set()
    kept = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor
    return kept


def _load_connector(projector: Projector, path: Path) -> None:
    given, own = _read(path), connector_state(projector)
    _fits(path, given, own)
    for name, tensor in own.items():
        tensor.copy_(given[name])


def _load_language(network: torch.nn.Module, path: Path) -> None:
    wanted = _without_aliases(network.state_dict())
    _fits(path, given := _read(path), wanted)
    network.load_state_dict(given, strict=False)


def _load_lora(network: torch.nn.Module, path: Path) -> None:
    from winnow.models.lora import lora_weights

    given, wanted = _read(path), lora_weights(network)
    _fits(path, given, wanted)
    network.load_state_dict(given, strict=False)


def _fits(path: Path, given: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in [*wanted, *given]:
        shapes = [tuple(t[name].shape) if name in t else "absent" for t in (given, wanted)]
        if shapes[0] != shapes[1]:
            msg = f"{path} is of another model: {name} is {shapes[0]} there, not {shapes[1]}"
            raise SetupError(msg)
