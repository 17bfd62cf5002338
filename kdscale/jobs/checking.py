"""`launch/check.py` behind its command line: a line for each promise, kept or broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from kdscale.contract.checks import Result
from kdscale.contract.named import Found, find, results
from kdscale.errors import ConfigError

__all__ = ["check"]

_STYLES = {"ok": "green", "FAIL": "bold red", "skip": "yellow"}
_INDENT = " " * 6


def check(words: Sequence[str], path: Sequence[Path]) -> int:
    """Check classes one by one, and print what comes of it.

    Args:
        words: `package.module` or `package.module:Class`, each followed by its options, `KEY=VALUE`.
        path: folders in which the packages lie.

    Returns:
        The exit code: 1 where a promise is broken.

    Raises:
        ConfigError: a folder, module or class does not exist.
        PluginError: importing a module fails.
    """
    for folder in path:
        if not folder.is_dir():
            raise ConfigError(f"--path {folder}: no such folder")
    console = Console(highlight=False, soft_wrap=True)
    folders = [folder.resolve() for folder in path]
    classes = [(find(name, folders), options) for name, options in _named(words)]
    return 1 if any([not _kept(found, options, console) for found, options in classes]) else 0


def _named(words: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Names, each with the options that follow it."""
    found: list[tuple[str, dict[str, Any]]] = []
    for word in words:
        key, is_option, value = word.partition("=")
        if not is_option:
            found.append((word, {}))
            continue
        try:
            found[-1][1][key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{word}: {str(error).splitlines()[0]}") from error
    return found


def _kept(found: Found, options: Mapping[str, Any], console: Console) -> bool:
    console.print(Text(f"{found.kind} {found.name}", "bold"), Text(found.line, "dim"))
    every = []
    for result in results(found, options):
        every.append(result)
        _tell(result, console)
    broken = sum(result.state == "FAIL" for result in every)
    verdict = f"{broken} promise{'s' * (broken > 1)} broken" if broken else "keeps the contract"
    console.print(Text(f"{found.name}: {verdict}", "red" if broken else "green"))
    return not broken


def _tell(result: Result, console: Console) -> None:
    said = f": {result.said}" if result.said else ""
    console.print(Text(f" {result.state:<4} ", _STYLES[result.state]) + Text(f"{result.promise}{said}"))
    if result.where:
        console.print(Text(f"{_INDENT}{result.where}"))
    if result.mend:
        console.print(Text(f"{_INDENT}-> {result.mend}", "dim"))
