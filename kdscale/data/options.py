"""The options of a data set (`data.options`), read by the set's own Config."""

from __future__ import annotations

import difflib
from typing import TypeVar

from pydantic import ValidationError

from kdscale.api import PluginConfig
from kdscale.config.schema import DataConfig
from kdscale.errors import ConfigError

__all__ = ["options_of"]

C = TypeVar("C", bound=PluginConfig)


def options_of(data: DataConfig, config: type[C]) -> C:
    """Read `data.options`.

    Raises:
        ConfigError: an unknown option (the text names the nearest) or a value that does not fit.
    """
    try:
        return config.model_validate(data.options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = list(config.model_fields)
        if first["type"] != "extra_forbidden":
            raise ConfigError(f"data.options.{key}: {first['msg']}, got {first['input']!r} ({data.name})") from error
        near = difflib.get_close_matches(key, known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"{data.name} knows {', '.join(known) or 'no options'}"
        raise ConfigError(f"data.options.{key}: unknown option; {mend}") from error
