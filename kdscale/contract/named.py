"""From the name of somebody's class to what it is held to."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from kdscale.api import Loss, Modifier, PluginConfig, Strategy
from kdscale.config.schema import PluginsConfig
from kdscale.contract.checks import Broken, Check, Result, Skipped, held_to, shown
from kdscale.contract.losses import LOSS_CHECKS, LossSubject
from kdscale.contract.models import MODEL_CHECKS, ModelSubject
from kdscale.contract.modifiers import MODIFIER_CHECKS, ModifierSubject
from kdscale.contract.strategies import STRATEGY_CHECKS, StrategySubject
from kdscale.errors import ConfigError, PluginError
from kdscale.own_code import on_path

__all__ = ["Found", "find", "results"]

_KINDS: Mapping[str, type] = {"loss": Loss, "modifier": Modifier, "strategy": Strategy, "model": nn.Module}
"""In the order in which a class is looked at: the first three are modules too."""
_OF_IMAGES = ("size", "channels", "classes")


@dataclass(frozen=True)
class Found:
    """Somebody's class, of a kind that there is a contract for."""

    kind: str
    cls: type
    module: str
    file: Path
    path: Sequence[Path]
    by_class: bool
    """Whether it was named as `module:Class`, and not by its module."""

    @property
    def name(self) -> str:
        """As a config names it."""
        return f"{self.module}:{self.cls.__name__}"

    @property
    def line(self) -> str:
        """Where it begins."""
        return f"{shown(self.file)}:{inspect.getsourcelines(self.cls)[1]}"

    @property
    def plugins(self) -> PluginsConfig:
        """What lets a config name it."""
        return PluginsConfig(path=list(self.path), allow=[self.module.partition(".")[0]])


def find(text: str, path: Sequence[Path]) -> Found:
    """Import `package.module` or `package.module:Class`.

    Args:
        text: the name.
        path: folders that are looked through first.

    Raises:
        ConfigError: there is no such thing, it is none that has a contract, or the module leaves open which.
        PluginError: importing it fails.
    """
    module_name, colon, class_name = text.partition(":")
    if not module_name or (colon and not class_name):
        raise ConfigError(f"{text}: say package.module or package.module:Class")
    on_path(path)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        looked = ", ".join(map(shown, path))
        raise ConfigError(f"{text}: {error}; looked in {looked or 'the environment'} (--path DIR)") from error
    except Exception as error:  # whatever the user's own file does
        raise PluginError(f"{text}: importing {module_name} fails: {type(error).__name__}: {error}") from error
    cls = _class_of(module, class_name) if colon else _only_class(module, text)
    file = inspect.getsourcefile(cls)
    assert file is not None
    return Found(_kind_of(cls, text), cls, module_name, Path(file), path, bool(colon))


def _class_of(module: Any, name: str) -> type:
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        there = ", ".join(cls.__name__ for cls in _classes(module)) or "none"
        raise ConfigError(f"{module.__name__} has no class {name}; there are: {there}")
    return found


def _only_class(module: Any, text: str) -> type:
    """The class that a module offers: the one in `__all__`, or the only one that has a contract."""
    public = [getattr(module, name, None) for name in getattr(module, "__all__", ())]
    found = [cls for cls in public if inspect.isclass(cls)] or _classes(module)
    if len(found) != 1:
        there = ", ".join(f"{text}:{cls.__name__}" for cls in found)
        raise ConfigError(f"{text}: " + (f"which? {there}" if found else "no loss, modifier, strategy or model in it"))
    return found[0]


def _classes(module: Any) -> list[type]:
    own = [cls for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__]
    return [cls for cls in own if not cls.__name__.startswith("_") and issubclass(cls, nn.Module)]


def _kind_of(cls: type, text: str) -> str:
    for kind, base in _KINDS.items():
        if issubclass(cls, base):
            return kind
    said = "is no loss, modifier, strategy (kdscale.api) and no torch.nn.Module"
    raise ConfigError(f"{text}: {cls.__name__} {said}")


def results(found: Found, options: Mapping[str, Any]) -> Iterator[Result]:
    """Hold a class to the contract of its kind, promise by promise.

    Args:
        found: the class.
        options: of it; of a model also `size`, `channels`, `classes` and `per_pixel` of the data.
    """
    subject = _subject(found, dict(options))
    checks = [*_first_checks(found, options), *_CHECKS[found.kind]]
    for number, check in enumerate(checks, start=1):
        result = held_to(check, subject)
        yield result
        if check.first and result.state == "FAIL":
            if number < len(checks):
                yield Result("skip", f"{len(checks) - number} more", "they are asked once this is kept")
            return


_CHECKS: Mapping[str, Sequence[Check[Any]]] = {
    "loss": LOSS_CHECKS, "modifier": MODIFIER_CHECKS, "strategy": STRATEGY_CHECKS, "model": MODEL_CHECKS,
}  # fmt: skip


def _subject(found: Found, options: dict[str, Any]) -> Any:
    if found.kind == "model":
        data = {key: _count(key, options.pop(key)) for key in _OF_IMAGES if key in options}
        per_pixel = bool(options.pop("per_pixel", False))
        return ModelSubject(found.cls, found.file, found.name, found.plugins, options, **data, per_pixel=per_pixel)
    if found.kind == "strategy":
        return StrategySubject(found.cls, found.file, found.name, found.plugins, options)
    return {"loss": LossSubject, "modifier": ModifierSubject}[found.kind](found.cls, found.file, options)


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key}={value}: say a whole number above 0")
    return value


def _first_checks(found: Found, options: Mapping[str, Any]) -> list[Check[Any]]:
    checks: list[Check[Any]] = [Check("one public name in __all__", lambda _: _one_name(found))]
    if found.kind != "model":
        checks.append(
            Check("options in a Config, each with a default", lambda _: _config(found.cls, options), first=True)
        )
        checks.append(Check("says where it comes from", lambda _: _source(found)))
    return checks


def _one_name(found: Found) -> str:
    public = list(getattr(importlib.import_module(found.module), "__all__", ()))
    if found.by_class:
        raise Skipped("it was named by its class, as a config does")
    if public != [found.cls.__name__]:
        raise Broken(
            f"__all__ is {public or 'missing'}", f'say __all__ = ["{found.cls.__name__}"]', where=shown(found.file)
        )
    return f"a config names it {found.name}"


def _config(cls: Any, options: Mapping[str, Any]) -> str:
    if not (inspect.isclass(cls.Config) and issubclass(cls.Config, PluginConfig)):
        raise Broken("Config is no kdscale.api.PluginConfig", "class Config(PluginConfig): temperature: float = 4.0")
    try:
        cls.Config(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise Broken(f"option {key} has no default", f"give it one, or say {key}=VALUE here") from error
        known = ", ".join(cls.Config.model_fields) or "none"
        raise Broken(f"{key}: {first['msg']}", f"options: {known}") from error
    fields = cls.Config.model_fields
    return ", ".join(f"{name}={field.get_default(call_default_factory=True)!r}" for name, field in fields.items())


def _source(found: Found) -> None:
    module = importlib.import_module(found.module)
    if "Source:" not in (module.__doc__ or ""):
        raise Skipped("no Source: line (required inside kdscale only)")
