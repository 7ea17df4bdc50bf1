"""Registries: the names that a recipe may use. There are no import paths in YAML."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.exporter import Exporter
from winnow.contracts.source import Source
from winnow.contracts.stage import GlobalStage, Stage
from winnow.contracts.trial import Evaluation, Trainer

T = TypeVar("T", bound=Callable[..., Any])


def _load_plugin(entry: EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:  # noqa: BLE001 - the boundary: somebody else's module
        owner = f" of {entry.dist.name}" if entry.dist is not None else ""
        msg = (
            f"the plug-in {entry.name}{owner} ({entry.group}: {entry.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}; repair or uninstall it"
        )
        raise SetupError(msg) from error


class Registry(Mapping[str, T], Generic[T]):
    """Name -> factory, filled by importing the built-in package and the plug-ins' entry points."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self._package = kind, package
        self._entries: dict[str, T] = {}
        self._loaded = self._plugged = False

    def add(self, name: str, factory: T) -> None:
        """Register a factory; a name can be taken once."""
        known = self._entries.get(name, factory)
        both = [f"{f.__module__}.{f.__qualname__}" for f in (known, factory)]
        if both[0] != both[1]:  # A module that is reloaded registers its own again.
            msg = f"{self.kind} {name!r} is registered twice: {both[0]} and {both[1]}"
            raise ValueError(msg)
        self._entries[name] = factory

    def load(self) -> None:
        """Import all public modules of the built-in package, then the entry points
        ``winnow.<kind>s``. What could not be imported raises again the next time.

        Fails: SetupError that names a plug-in which cannot be imported.
        """
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self._package}.{module.name}")
        self._load_plugins()
        self._loaded = True

    def _load_plugins(self) -> None:
        if not self._plugged:
            for entry in entry_points(group=f"winnow.{self.kind}s"):
                _load_plugin(entry)
            self._plugged = True

    def lookup(self, name: str) -> T | None:
        """Return the factory, or None. Imports only the module of that name, where there is one."""
        if name not in self._entries and not self._loaded and name.isidentifier():
            module = f"{self._package}.{name}"
            if importlib.util.find_spec(module) is not None:
                importlib.import_module(module)
        if name not in self._entries:
            self._load_plugins()
        return self._entries.get(name)

    def find(self, name: str) -> T:
        """Return the factory, or raise RecipeError with the nearest valid names."""
        found = self.lookup(name)
        if found is not None:
            return found
        self.load()
        try:
            return self._entries[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._entries, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else ""
            msg = f"there is no {self.kind} {name!r}; {hint or 'known: ' + ', '.join(sorted(self))}"
            raise RecipeError(msg) from None

    def __getitem__(self, name: str) -> T:
        self.load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        self.load()
        return len(self._entries)


STAGES: Registry[type[Stage]] = Registry("stage", "winnow.stages")
GLOBAL_STAGES: Registry[type[GlobalStage]] = Registry("global_stage", "winnow.stages.dedupe")
SOURCES: Registry[type[Source]] = Registry("source", "winnow.stages.sources")
EXPORTERS: Registry[type[Exporter]] = Registry("exporter", "winnow.stages.export")
TRAINERS: Registry[type[Trainer]] = Registry("trainer", "winnow.stages.train")
EVALUATIONS: Registry[type[Evaluation]] = Registry("evaluation", "winnow.stages.evaluate")
FILTERS: Registry[Callable[..., Any]] = Registry("filter", "winnow.filters")

C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])


def _register(registry: Registry[Any], name: str, version: int) -> Callable[[C], C]:
    def register(cls: C) -> C:
        cls.name, cls.version = name, version
        registry.add(name, cls)
        return cls

    return register


def register_stage(name: str, *, version: int) -> Callable[[C], C]:
    """Register a Stage; bump ``version`` whenever its output can change."""
    return _register(STAGES, name, version)


def register_global_stage(name: str, *, version: int) -> Callable[[C], C]:
    """Register a GlobalStage."""
    return _register(GLOBAL_STAGES, name, version)


def register_source(name: str, *, version: int) -> Callable[[C], C]:
    """Register a Source."""
    return _register(SOURCES, name, version)


def register_exporter(name: str, *, version: int) -> Callable[[C], C]:
    """Register an Exporter."""
    return _register(EXPORTERS, name, version)


def register_trainer(name: str, *, version: int) -> Callable[[C], C]:
    """Register a Trainer."""
    return _register(TRAINERS, name, version)


def register_evaluation(name: str, *, version: int) -> Callable[[C], C]:
    """Register an Evaluation."""
    return _register(EVALUATIONS, name, version)


def register_filter(name: str) -> Callable[[F], F]:
    """Register a filter factory: keywords in, an expression or a selection rule out."""

    def register(factory: F) -> F:
        FILTERS.add(name, factory)
        return factory

    return register
