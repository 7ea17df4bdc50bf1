"""Labelled scenes: synthetic pictures whose content is known exactly, and what can be said of them.

    from winnow.stages.sources._scenes import CONCEPTS, SceneOptions, caption, render, scene

    options = SceneOptions(max_objects=4)
    s = scene(seed=1, index=7, options=options)   # a frozen description, the same on every machine
    image = render(s, 64, 64)                     # PIL, mode RGB, exactly 64 x 64
    caption(s)                                    # "a small cat and two dogs"
    caption(s, variant=2)                         # "a small cat to the left of two dogs"
    caption(s, "de")                              # "Katze und Hund (2)"

API, settled:

    CONCEPTS: tuple[str, ...]                     English names, the keys of everything else
    LANGUAGES: tuple[str, ...]                    ISO 639-1 codes of the captions; "en" is first
    SceneOptions(...)                             what can be drawn; frozen, see model.py
    scene(seed: int, index: int, options: SceneOptions) -> Scene
    render(scene: Scene, width: int, height: int) -> PIL.Image.Image
    caption(scene: Scene, language: str = "en", variant: int = 0, part: Part = "all") -> str
    num_variants(language: str = "en", part: Part = "all") -> int    variants repeat modulo this

A Scene has ``width, height`` (its own size in pixels), ``objects`` (one SceneObject per instance:
concept, box as fractions of the canvas, rotation, flip, color), ``relations`` (subject concept,
predicate, object concept; true of all instances), ``background``, and ``groups`` (one entry per
distinct concept: count, color, size word). ``render`` maps the canvas onto ``width`` x ``height``
as a resize would; for square training pictures ask for ``SceneOptions(aspects=(1.0, 1.0))``.
Everything is a pure function of its arguments; another ``seed`` is another sample of the same kind,
another ``SceneOptions.part`` holds out pairs, backgrounds and templates (``holdout``).
"""

from winnow.stages.sources._scenes.captions import caption, num_variants
from winnow.stages.sources._scenes.compose import render
from winnow.stages.sources._scenes.layout import scene
from winnow.stages.sources._scenes.model import (
    Background,
    Group,
    Relation,
    Scene,
    SceneObject,
    SceneOptions,
)
from winnow.stages.sources._scenes.sprites import CONCEPTS, LANGUAGES

__all__ = [
    "CONCEPTS",
    "LANGUAGES",
    "Background",
    "Group",
    "Relation",
    "Scene",
    "SceneObject",
    "SceneOptions",
    "caption",
    "num_variants",
    "render",
    "scene",
]
