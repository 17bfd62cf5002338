"""What is measured and written once a stage is trained: expectations, own metrics, further test sets, exports.

None of it moves a trained number, so all of it is outside a stage's identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from kdscale.config.sections import Model, outside

__all__ = ["EvalConfig", "Expectation", "ExportConfig", "FurtherSet", "metric_names"]


class Expectation(Model):
    """A figure that must come out, or the stage fails."""

    top1: float | None = Field(None, ge=0, le=1, description="on test, of the last epoch")
    miou: float | None = Field(None, ge=0, le=1, description="the same where pixels have classes")
    within: float = Field(0.01, gt=0, description="largest difference that passes")
    source: str | None = Field(None, description="where the figure is from")

    @model_validator(mode="after")
    def _one_figure(self) -> Expectation:
        if (self.top1 is None) == (self.miou is None):
            raise ValueError("say top1, or miou where pixels have classes")
        return self


class FurtherSet(Model):
    """A data set whose test split is looked at besides the stage's own."""

    name: str | None = outside(None, description="default: the stage's own data set, with its root and options")
    root: Path | None = outside(None, description="folder of the data, as data.root")
    options: dict[str, Any] = outside({}, description="options of the data set itself, as data.options")
    limit: PositiveInt | None = outside(None, description="test rows, as data.limit_test")
    metrics: list[str] | None = outside(None, description="default: those of eval.metrics")


class EvalConfig(Model):
    """What is measured of a finished stage besides its usual figures."""

    metrics: list[str] = outside([], description="of the whole test set: macro_f1, or your own function as birds.f1:f1")
    sets: dict[str, FurtherSet | None] = outside({}, description="further test sets by name; null takes one out")

    @property
    def asked(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.metrics or any(self.sets.values()))


class ExportConfig(Model):
    """The folder that is written of a stage when its sweep has ended, as by launch/export.py."""

    formats: list[Literal["safetensors", "pt2", "onnx"]] = outside(
        ["safetensors", "pt2", "onnx"], min_length=1, description="which files"
    )
    weights: str = outside("last", description="last, best, epoch:N or acc:X")
    int8: bool = outside(False, description="the ONNX file in int8 as well")

    @field_validator("formats")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @model_validator(mode="after")
    def _int8_is_of_onnx(self) -> ExportConfig:
        if self.int8 and "onnx" not in self.formats:
            raise ValueError("int8 is of the ONNX file: add onnx to formats")
        return self


def metric_names(metrics: list[str]) -> dict[str, str]:
    """Each metric by the name of its figure: of `birds.metrics:macro_f1` the function's."""
    return {metric.rpartition(":")[2]: metric for metric in metrics}
