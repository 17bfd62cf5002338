"""Ready-made views of the runs table: which runs, in which order, with which columns.

MLflow's table shows no metric until somebody picks columns. A view is a tag of the experiment: one with a name stands
in the menu "Views" for everybody, one without is reached by a link only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

__all__ = ["EXPERIMENT_TAGS", "VERSION", "View", "for_everybody", "of_sweep"]

VERSION = "1"
"""Raised when the views for everybody change: an experiment gets each version once, so that a deleted view stays so."""
TAG = "mlflow.sharedViewState."
FIGURES = (
    "final/top1", "final/gain_over_ce", "final/best_val_top1", "final/agreement", "final/nll", "final/ece",
    "model/params_m", "model/flops_g", "model/latency_ms",
)  # fmt: skip
MEANS = (
    "final/top1_mean", "final/top1_ci95", "n", "final/gain_over_ce_mean", "final/agreement_mean", "final/nll_mean",
    "final/ece_mean", "model/params_m", "model/latency_ms",
)  # fmt: skip
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "Sweeps of kdscale. One run a **sweep**, and below it one a **trial** (complete by itself), one a **group** of "
        "seeds (mean and 95 % interval) and one a **stage** (curves). The menu *Views* holds tables with columns and "
        "order ready. To filter by hand:\n\n"
        "```\n"
        """tags."kdscale.level" = 'trial' and tags."kdscale.sweep" = 'NAME' and metrics."model/params_m" < 5"""
        "\n```"
    ),
}
CURVES = "^(val/|train/loss)"
SMALL_M = 5
WIDTH_PX = 130


@dataclass(frozen=True)
class View:
    """One look at the runs."""

    id: str
    name: str
    filter: str
    order: str
    """Metric, the largest first."""
    metrics: Sequence[str]
    params: Sequence[str] = ()
    tags: Sequence[str] = ("kdscale.state",)
    charts: str = ""
    """Regular expression: the view shows charts of these metrics instead of a table."""

    @property
    def tag(self) -> str:
        """Name of the experiment's tag that holds it."""
        return TAG + self.id

    def state(self) -> str:
        """What MLflow's UI stores of a view (3.17)."""
        columns = [f"metrics.`{m}`" for m in self.metrics] + [f"params.`{p}`" for p in self.params]
        columns += [f"tags.`{t}`" for t in self.tags]
        state: dict[str, Any] = {
            "searchFilter": self.filter,
            "orderByKey": f"metrics.`{self.order}`",
            "orderByAsc": False,
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": {name: WIDTH_PX for name in columns},
        }
        return json.dumps(state | ({"chartsSearchFilter": self.charts} if self.charts else {}))

    def listed(self, now_ms: int) -> str:
        """The state as it is stored to stand in the menu."""
        return json.dumps({"name": self.name, "createdAt": now_ms, "updatedAt": now_ms, "state": self.state()})

    def is_in(self, tags: Mapping[str, str]) -> bool:
        """Whether an experiment has the view as it is now."""
        return json.dumps(self.state()) in tags.get(self.tag, "")

    def link(self, base: str, experiment_id: str) -> str:
        """Address that opens the view, once its tag is there."""
        query = f"workflowType=machine_learning&viewStateShareKey={quote(self.id)}"
        query += "&compareRunsMode=CHART" if self.charts else ""
        return f"{base}/#/experiments/{experiment_id}/runs?{query}"


def for_everybody() -> list[View]:
    """Views over all sweeps of an experiment."""
    sweep = ("kdscale.sweep", "kdscale.state")
    return [
        View("kdscale-trials", "kdscale: trials, best first", _level("trial"), "final/top1", FIGURES, tags=sweep),
        View(
            "kdscale-small",
            f"kdscale: best under {SMALL_M} M parameters",
            f'{_level("trial")} and metrics."model/params_m" < {SMALL_M}',
            "final/top1",
            FIGURES,
            tags=sweep,
        ),
        View("kdscale-means", "kdscale: means over seeds", _level("group"), "final/top1_mean", MEANS, tags=sweep),
        View(
            "kdscale-stages",
            "kdscale: stages",
            _level("stage"),
            "final/top1",
            ("final/top1", "train/loss", "val/top1", "time/step_s", "time/data_s", "time/teacher_s"),
            tags=("kdscale.sweep", "kdscale.stage", "kdscale.digest", "kdscale.state", "kdscale.attempts"),
        ),
    ]


def of_sweep(name: str, folder: str, axes: Mapping[str, Sequence[str]]) -> list[View]:
    """Views of one sweep, with its axes as columns; means only where there are seeds."""
    mine = f"""tags."kdscale.sweep_id" = '{folder}'"""
    trials = f"{mine} and {_level('trial')}"
    small = f'{trials} and metrics."model/params_m" < {SMALL_M}'
    views = [
        View(f"{folder}-trials", f"{name}: trials, best first", trials, "final/top1", FIGURES, list(axes)),
        View(f"{folder}-small", f"{name}: best under {SMALL_M} M parameters", small, "final/top1", FIGURES, list(axes)),
    ]
    if "seed" in axes:
        others = [axis for axis in axes if axis != "seed"]
        means = f"{mine} and {_level('group')}"
        views.append(View(f"{folder}-means", f"{name}: means over seeds", means, "final/top1_mean", MEANS, others))
    curves = View(f"{folder}-curves", f"{name}: curves", trials, "final/top1", FIGURES, list(axes), charts=CURVES)
    return [*views, curves]


def _level(level: str) -> str:
    return f"""tags."kdscale.level" = '{level}'"""
