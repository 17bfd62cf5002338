"""What an engine cannot run, refused before anything starts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from kdscale import plugins
from kdscale.api import Loss, Strategy
from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError

__all__ = ["refuse_what_the_engine_cannot_run"]


def refuse_what_the_engine_cannot_run(spec: StageSpec) -> None:
    """Compare a stage's engine with its strategy, its terms and this installation.

    Raises:
        ConfigError: with the key path.
    """
    at, engine = f"stages.{spec.name}", spec.engine
    if engine.name == "deepspeed" and find_spec("deepspeed") is None:
        raise ConfigError(f"{at}.engine.name: deepspeed is not installed; ./install.sh deepspeed brings it")
    strategy: type[Strategy] = plugins.load("strategies", spec.strategy, spec.plugins)
    if engine.zero_stage > strategy.most_zero_stage:
        raise ConfigError(
            f"{at}.engine.zero_stage: strategy {spec.strategy} runs up to {strategy.most_zero_stage}, "
            f"not {engine.zero_stage}"
        )
    if engine.zero_stage == 3:
        for term in _needing_input_gradients(spec):
            raise ConfigError(
                f"{at}.engine.zero_stage: {term} differentiates its input's gradient, which ZeRO 3 cannot, since "
                "weights are whole only while they are used; 2 can"
            )


def _needing_input_gradients(spec: StageSpec) -> Iterable[str]:
    for terms in spec.passes.values():
        for term in terms:
            loss: type[Loss] = plugins.load("losses", term.name, spec.plugins)
            if loss.needs_input_grad:
                yield term.id
