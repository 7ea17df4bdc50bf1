"""Registries: packages and plug-ins of real files, imported as late as can be."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.registry import (
    EVALUATIONS,
    EXPORTERS,
    FILTERS,
    GLOBAL_STAGES,
    SOURCES,
    STAGES,
    TRAINERS,
    Registry,
)

NUMBERS = itertools.count()
Maker = Callable[..., Registry[Any]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Maker]:
    """Write modules of a package, return its registry; each registers a factory of its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def maker(*modules: str, plugins: dict[str, str] | None = None) -> Registry[Any]:
        kind = f"toy{next(NUMBERS)}"
        package = f"package_of_{kind}"
        write(tmp_path / package / "__init__.py", HEAD.format(kind=kind, package=package))
        for name in modules:
            write(tmp_path / package / f"{name}.py", module(package, name))
        for name, text in (plugins or {}).items():
            plugin, info = f"{package}_{name}", tmp_path / f"{package}_{name}-1.dist-info"
            write(tmp_path / f"{plugin}.py", text.format(package=package))
            write(info / "METADATA", f"Name: {plugin}\nVersion: 1\n")
            write(info / "entry_points.txt", f"[winnow.{kind}s]\n{name} = {plugin}\n")
        registry: Registry[Any] = importlib.import_module(package).NAMES
        return registry

    yield maker
    for name in set(sys.modules) - before:
        if name.startswith("package_of_"):
            del sys.modules[name]


HEAD = "from winnow.contracts.registry import Registry\nNAMES = Registry('{kind}', '{package}')\n"
PLUGIN = "from {package} import NAMES\ndef factory(): return 'far'\nNAMES.add('afar', factory)\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    importlib.invalidate_caches()


def module(package: str, name: str) -> str:
    text = f"from {package} import NAMES\ndef factory(): return '{name}'\n"
    return f"{text}NAMES.add('{name}', factory)\n"


def imported(registry: Registry[Any]) -> set[str]:
    """Modules of a registry's package that were imported."""
    prefix = f"package_of_{registry.kind}."
    return {name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)}


def test_a_name_imports_its_module_alone(make: Maker) -> None:
    registry = make("one", "two", plugins={"far": PLUGIN})
    assert imported(registry) == set()
    factory = registry.lookup("one")
    assert factory is not None and factory() == "one"
    assert imported(registry) == {"one"}
    assert f"package_of_{registry.kind}_far" not in sys.modules
    assert registry.find("one") is factory


def test_a_mapping_has_all_names_of_package_and_plugins(make: Maker) -> None:
    registry = make("two", "one", plugins={"far": PLUGIN})
    assert list(registry) == ["afar", "one", "two"]
    assert len(registry) == 3
    assert "one" in registry and "three" not in registry
    said = {name: factory() for name, factory in registry.items()}
    assert said == {"afar": "far", "one": "one", "two": "two"}
    with pytest.raises(KeyError, match="three"):
        registry["three"]


def test_a_plugin_is_found_by_its_name(make: Maker) -> None:
    registry = make("one", plugins={"far": PLUGIN})
    assert registry.find("afar")() == "far"
    assert imported(registry) == set()


@pytest.mark.parametrize(
    "name",
    [
        "none", "", ".", "..one", "one.two", "one.", ".one", "one two", "../one", "a.b.c", "\0",
        "\ud83d", "__init__", "__main__", "os", "os.path", "One",
    ],
)  # fmt: skip
def test_whatever_a_recipe_says_is_a_name_or_a_recipe_error(make: Maker, name: str) -> None:
    registry = make("one", "two")
    assert registry.lookup(name) is None
    with pytest.raises(RecipeError, match="one"):
        registry.find(name)


def test_a_wrong_name_is_told_the_nearest_one(make: Maker) -> None:
    registry = make("image_info", "audio_info", "download")
    with pytest.raises(RecipeError, match="did you mean image_info") as caught:
        registry.find("imge_info")
    assert f"there is no {registry.kind} 'imge_info'" in str(caught.value)
    assert "download" not in str(caught.value)


def test_a_name_can_be_taken_once(make: Maker) -> None:
    registry = make("one")
    first = registry.find("one")
    with pytest.raises(ValueError, match=r"'one' is registered twice: package_of_\w+\.one\.fac"):
        registry.add("one", lambda: "other")
    assert registry.find("one") is first


def test_a_plugin_that_copies_a_built_in_cannot_take_its_name(make: Maker) -> None:
    """The class or function has the same name, too: only its module differs."""
    registry = make("one", plugins={"rival": PLUGIN.replace("afar", "one")})
    first = registry.find("one")
    with pytest.raises(SetupError, match=r"the plug-in rival .* cannot be loaded: .* twice"):
        registry.load()
    assert registry.lookup("one") is first
    assert first() == "one"


def test_a_reloaded_module_registers_its_own_again(make: Maker) -> None:
    registry = make("one")
    first = registry.find("one")
    importlib.reload(sys.modules[first.__module__])
    assert registry.find("one") is not first
    assert registry.find("one")() == "one"


@pytest.mark.parametrize("place", ["package", "plug-in"])
def test_what_cannot_be_imported_is_no_wrong_name_however_often_it_is_tried(
    make: Maker, tmp_path: Path, place: str
) -> None:
    broken = "import no_such_library_here\n"
    registry = make("one", plugins={"far": broken} if place == "plug-in" else {"far": PLUGIN})
    if place == "package":
        write(tmp_path / f"package_of_{registry.kind}" / "broken.py", broken)
    for attempt in (
        registry.load,
        registry.load,
        lambda: registry.find("brok"),
        lambda: len(registry),
    ):
        kind = SetupError if place == "plug-in" else ModuleNotFoundError
        with pytest.raises(kind, match="no_such_library_here"):
            attempt()
    assert registry.find("one")() == "one"


def test_private_modules_are_no_part_of_the_registry(make: Maker, tmp_path: Path) -> None:
    registry = make("one")
    write(tmp_path / f"package_of_{registry.kind}" / "_helper.py", "raise AssertionError\n")
    assert list(registry) == ["one"]


@pytest.mark.parametrize(
    "registry",
    [STAGES, GLOBAL_STAGES, SOURCES, EXPORTERS, TRAINERS, EVALUATIONS, FILTERS],
    ids=lambda registry: registry.kind,
)
def test_what_ships_lies_in_the_file_of_its_name(registry: Registry[Any]) -> None:
    """So ``lookup`` finds it without importing everything."""
    found = {n: f.__module__ for n, f in registry.items() if f.__module__.startswith("winnow.")}
    assert found
    for name, place in found.items():
        assert place.rsplit(".", 1)[-1] == name
        assert registry is FILTERS or registry[name].name == name
