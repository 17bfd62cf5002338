"""Optuna's part in a search, and the one file that knows Optuna: what is suggested, told, and found important.

The journal (study.jsonl) is the truth of a search: a line a change, each flushed to the disk before anything is done
about it. Its one writer holds a lock of the sweep's; Optuna's own, which a kill would leave behind, is not used.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdscale.config.search import SamplerConfig, SearchConfig
from kdscale.config.space import Dimension
from kdscale.draws import uniform
from kdscale.errors import ConfigError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

Direction = Literal["maximize", "minimize"]

__all__ = ["DIGITS", "Asked", "Direction", "Study", "demand_optuna"]

DIGITS = 4
"""Significant digits of a suggested fraction: journal, configs, digests and screens all hold the same number."""
FEWEST_FOR_IMPORTANCE = 8
"""Finished trials, below which an importance would be noise."""
_STEP_DIGITS = 12
_NAME = "search"
_STATES = {"RUNNING": "open", "WAITING": "open", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True)
class Asked:
    """One suggestion and what became of it."""

    number: int
    state: str
    """`open`, `complete`, `pruned` or `failed`."""
    values: dict[str, Any]
    """By dotted key of the config."""
    value: float | None = None
    """Its figure; of a pruned one the last that there was."""
    epochs: dict[int, float] = field(default_factory=dict)
    """Its figure by epoch, as far as it was looked at."""
    reason: str = ""

    @property
    def label(self) -> str:
        """Its value of the axis `trial`."""
        return f"t{self.number}"


def demand_optuna() -> None:
    """Raises: ConfigError: Optuna is not installed."""
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("sweep.method: optuna needs a package that is not here: ./install.sh search")


class Study:
    """A study of Optuna's.

    Suggestion n is a function of the sampler's seed, n and what was told before it, whoever asks and however often he
    was killed: each is drawn by a sampler of its own.

    Args:
        settings: of the search.
        direction: `maximize` or `minimize`.
        journal: the file that holds it, made if need be; without one it is in memory.
        writes: whether the journal is ours to write. Else it is copied into memory.
    """

    def __init__(
        self, settings: SearchConfig, direction: Direction, journal: Path | None = None, *, writes: bool = True
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._settings, self._space = settings, settings.dimensions
        if journal is not None and writes:
            _cut_torn_line(journal)
        known = _stored(journal) if journal is not None and (writes or journal.exists()) else None
        self._study = optuna.create_study(
            storage=known if writes else None, study_name=_NAME, direction=direction, load_if_exists=True,
            pruner=_pruner(settings),
        )  # fmt: skip
        if known is not None and not writes:
            self._study.add_trials(optuna.load_study(study_name=_NAME, storage=known).trials)

    def trials(self) -> list[Asked]:
        """All that was ever suggested, in order."""
        return [self._asked(trial) for trial in self._study.get_trials(deepcopy=False)]

    def ask(self) -> Asked:
        """The next suggestion. A kill in its middle leaves a trial with a part of its values: see `whole`."""
        self._study.sampler = _sampler(self._settings.sampler, len(self._study.get_trials(deepcopy=False)))
        trial = self._study.ask()
        return self.whole(trial.number)

    def whole(self, number: int) -> Asked:
        """An open trial with all of its values: those that it lacks are suggested now."""
        self._study.sampler = _sampler(self._settings.sampler, number)
        trial = self._open(number)
        for key, dimension in self._space.items():
            _suggest(trial, key, dimension)
        return self._asked(self._frozen(number))

    def report(self, number: int, epochs: Mapping[int, float]) -> None:
        """Note an open trial's figure at epochs that are new."""
        known, trial = self._frozen(number).intermediate_values, self._open(number)
        for epoch in sorted(epochs.keys() - known.keys()):
            trial.report(epochs[epoch], epoch)

    def behind(self, number: int) -> bool:
        """Whether an open trial is so far behind the finished ones that it is not worth going on with."""
        return bool(self._open(number).should_prune())

    def complete(self, number: int, value: float) -> None:
        """Tell the figure of a trial that is through."""
        self._study.tell(number, value)

    def prune(self, number: int) -> None:
        """Tell that a trial is stopped early; its last figure counts."""
        from optuna.trial import TrialState

        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Tell that a trial came to nothing."""
        from optuna.trial import TrialState

        self._open(number).set_user_attr("reason", reason)
        self._study.tell(number, state=TrialState.FAIL)

    def importance(self) -> dict[str, float]:
        """How much each key decides whether a trial is among the best tenth (PED-ANOVA), most important first.

        Returns:
            Shares that sum to one; empty as long as too few trials are finished.
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
        from optuna.trial import TrialState

        finished = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(finished) < FEWEST_FOR_IMPORTANCE or len({trial.value for trial in finished}) == 1:
            return {}
        with warnings.catch_warnings():  # that only few are among the best is said in the report
            warnings.simplefilter("ignore")
            return dict(get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator()))

    # ------------------------------------------------------------------ trials

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _open(self, number: int) -> Trial:
        from optuna.trial import Trial

        # ask() alone gives these out, and only once: those of an earlier process are made from what is stored
        return Trial(self._study, self._frozen(number)._trial_id)

    def _asked(self, trial: FrozenTrial) -> Asked:
        values = {k: _plain(v, self._space[k]) for k, v in trial.params.items() if k in self._space}
        state, reason = _STATES[trial.state.name], str(trial.user_attrs.get("reason", ""))
        return Asked(trial.number, state, values, trial.value, dict(trial.intermediate_values), reason)


# --------------------------------------------------------------------------- suggestions


def _sampler(settings: SamplerConfig, number: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    seed = int(uniform("search", settings.seed, number) * 2**31)
    if settings.name == "random":
        return _rounding(RandomSampler(seed=seed))
    return _rounding(TPESampler(n_startup_trials=settings.startup, seed=seed))


def _rounding(sampler: BaseSampler) -> BaseSampler:
    """The same, with fractions rounded before they are stored."""
    from optuna.distributions import BaseDistribution, FloatDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study as OptunaStudy

    def rounded(value: Any, distribution: BaseDistribution) -> Any:
        if not isinstance(distribution, FloatDistribution):
            return value
        digits = DIGITS if distribution.step is None else _STEP_DIGITS
        return min(max(float(f"{value:.{digits}g}"), distribution.low), distribution.high)

    class Rounding(BaseSampler):
        def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return sampler.infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            drawn = sampler.sample_relative(study, trial, search_space)
            return {key: rounded(value, search_space[key]) for key, value in drawn.items()}

        def sample_independent(
            self, study: OptunaStudy, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            drawn = sampler.sample_independent(study, trial, param_name, param_distribution)
            return rounded(drawn, param_distribution)

    return Rounding()


def _suggest(trial: Trial, key: str, dimension: Dimension) -> None:
    low, high = dimension.low, dimension.corner(1)
    if dimension.kind == "choice":
        trial.suggest_categorical(key, [_category(choice) for choice in dimension.choices])
    elif dimension.kind == "integer":
        trial.suggest_int(key, int(low), int(high), step=int(dimension.step or 1))
    else:
        trial.suggest_float(key, low, high, step=dimension.step, log=dimension.kind == "loguniform")


def _category(choice: Any) -> str | int | float | bool | None:
    """A choice as Optuna can hold it."""
    return choice if isinstance(choice, (str, int, float, bool, type(None))) else json.dumps(choice, sort_keys=True)


def _plain(value: Any, dimension: Dimension) -> Any:
    """A suggested value as the config has it."""
    if dimension.kind != "choice":
        return value
    return next(choice for choice in dimension.choices if _category(choice) == value)


def _pruner(settings: SearchConfig) -> Any:
    from optuna.pruners import NopPruner, PercentilePruner

    rule = settings.prune
    return NopPruner() if rule is None else PercentilePruner(rule.percentile, n_startup_trials=rule.after_trials)


# --------------------------------------------------------------------------- the journal


def _stored(journal: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Held(JournalFileOpenLock):
        """The sweep's own lock keeps other writers out."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            return

    return JournalStorage(JournalFileBackend(str(journal), lock_obj=Held(str(journal))))


def _cut_torn_line(journal: Path) -> None:
    """A kill in the middle of a write leaves half a line, behind which nothing could be read any more."""
    content = journal.read_bytes() if journal.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)
