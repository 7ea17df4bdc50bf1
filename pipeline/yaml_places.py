"""YAML with the line of every value, so that a message can say where."""

from __future__ import annotations

from typing import Any

import yaml

from winnow.contracts.errors import RecipeError

Path = tuple[str | int, ...]
MAX_PLACES = 1_000_000
"""Values of one document; an anchor that is used again counts as often as it is used."""
MAX_INT_BITS = 1024
"""Beyond it an integer has no float, and soon no text."""
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Places:
    """Line numbers of a YAML document by path, e.g. ("stages", "clip_score", "batch_size")."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._lines: dict[Path, int] = {}

    def add(self, path: Path, line: int) -> None:
        """Remember where a key stands."""
        self._lines[path] = line
        if len(self._lines) > MAX_PLACES:
            msg = f"more than {MAX_PLACES:,} values, those behind anchors counted as often as used"
            raise RecipeError(msg, place=f"{self.file}:{line}")

    def place(self, path: Path) -> str:
        """Return ``file:line`` of a path, or of its nearest parent that the document has."""
        while path and path not in self._lines:
            path = path[:-1]
        line = self._lines.get(path)
        return f"{self.file}:{line}" if line else self.file


def load_yaml(text: str, file: str) -> tuple[Any, Places]:
    """Parse a document; duplicate keys, non-string keys, anchors' merges and tags are refused."""
    places = Places(file)
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        place = f"{file}:{text.count(chr(10), 0, error.position) + 1}"
        msg = f"not valid YAML: the character {chr(error.character)!r} cannot stand in a recipe"
        raise RecipeError(msg, place=place) from None
    try:
        node = loader.get_single_node()
        return (None if node is None else _build(loader, node, (), places)), places
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        msg = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise RecipeError(msg, place=place) from None
    except RecursionError:
        msg = "an anchor contains itself, or sections are nested too deeply; write the values out"
        raise RecipeError(msg, place=file) from None
    finally:
        loader.dispose()


def _build(loader: yaml.SafeLoader, node: yaml.Node, path: Path, places: Places) -> Any:
    places.add(path, node.start_mark.line + 1) if not path else None
    tags = (_implied_tag(loader, node),) if isinstance(node, yaml.ScalarNode) else _PLAIN
    if node.tag not in tags:
        msg = f"the tag {node.tag!r} is not for recipes; remove it"
        raise RecipeError(msg, place=f"{places.file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, places)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            places.add((*path, index), child.start_mark.line + 1)
            items.append(_build(loader, child, (*path, index), places))
        return items
    return _scalar(loader, node, places)


def _implied_tag(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    """Return the tag that a scalar has where nobody wrote one."""
    plain = node.style is None
    return str(loader.resolve(yaml.ScalarNode, node.value, (plain, not plain)))


def _scalar(loader: yaml.SafeLoader, node: yaml.Node, places: Places) -> Any:
    try:
        value = loader.construct_object(node)
        fits = not isinstance(value, int) or value.bit_length() <= MAX_INT_BITS
    except ValueError:  # it looks like an integer or a date
        fits = False
    if not fits:
        msg = f"{node.value[:60]!r} is no number or date that there is; write a text in quotes"
        raise RecipeError(msg, place=f"{places.file}:{node.start_mark.line + 1}")
    return value


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: Path, places: Places
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _build(loader, key_node, (*path, ""), places)
        if not isinstance(key, str):
            msg = f"the key {key!r} is a {type(key).__name__}; write it in quotes"
            raise RecipeError(msg, place=f"{places.file}:{line}")
        if key in values:
            msg = f"{key!r} is given twice; names are unique within a section"
            raise RecipeError(msg, place=f"{places.file}:{line}")
        places.add((*path, key), line)
        values[key] = _build(loader, value_node, (*path, key), places)
    return values
