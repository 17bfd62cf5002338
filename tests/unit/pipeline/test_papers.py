"""configs/papers: every setting equals its source's, every published figure is the one that is printed there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdscale.config.load import Sweep, load, resolve_stages
from kdscale.config.schema import StageSpec
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.plan import make_plan
from tests.matrix import MATRIX

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
PAPERS = sorted(path.stem for path in (CONFIGS / "papers").glob("*.yaml"))
PAIRS = ("crd_resnet56_resnet20", "crd_resnet32x4_resnet8x4")
STAGES, LAST, POOLED = ["stage1", "stage2", "stage3"], ["stage3"], ["pooled"]

# epochs, batch, lr, milestones, factor at each, weight decay, warm-up
RECIPES = {
    "crd_resnet56_resnet20": (240, 64, 0.05, [150, 180, 210], 0.1, 5e-4, 0),
    "crd_resnet32x4_resnet8x4": (240, 64, 0.05, [150, 180, 210], 0.1, 5e-4, 0),
    "takd": (160, 128, 0.01, [120], 0.1, 1e-4, 0),
    "gskd": (80, 128, 0.01, [60], 0.1, 1e-4, 0),
    "one": (300, 128, 0.1, [150, 225], 0.1, 1e-4, 0),
    "tfkd": (200, 128, 0.1, [60, 120, 160], 0.2, 5e-4, 1),
    "fsp_ensemble": (105, 250, 0.1, [55, 80], 0.1, 1e-4, 0),
}
# Stages that are not trained by their file's recipe: what differs.
OTHERS: dict[tuple[str, str], dict[str, Any]] = {
    **{(pair, "init"): {"epochs": 30, "schedule": "constant"} for pair in PAIRS},
    ("fsp_ensemble", "teacher"): {"epochs": 320, "milestones": [160, 240]},
    ("fsp_ensemble", "ensemble"): {"epochs": 0},
}
# Of the benchmark: weight of the labels, weight of the method, its options, what it taps.
METHODS: dict[str, tuple[float, float, dict[str, Any], list[str] | None]] = {
    "kd": (0.1, 0.9, {"temperature": 4}, None),
    "fitnet": (1, 100, {}, ["stage2"]),
    "at": (1, 1000, {}, STAGES),
    "sp": (1, 3000, {}, LAST),
    "cc": (1, 0.02, {"kernel": "adjacent", "embedding": 128, "teacher_embedding": "trained"}, POOLED),
    "vid": (1, 1, {"initial_variance": 5}, STAGES),
    "rkd": (1, 1, {"distance": 25, "angle": 50}, POOLED),
    "pkt": (1, 30000, {}, POOLED),
    "ft": (1, 200, {"distance": "at_like", "rate": 0.5, "translator_bn": True, "reconstruction": 0}, LAST),
    "crd": (1, 0.8, {"negatives": 16384, "temperature": 0.07, "momentum": 0.5, "dimensions": 128}, POOLED),
}
INITS: dict[str, tuple[dict[str, Any], list[str], float]] = {
    "ab": ({"connect": "where_needed"}, ["stage1.pre", "stage2.pre", "stage3.pre"], 0.05),
    "ft": ({"distance": "none", "reconstruction": 1, "reconstruct": "mse", "rate": 0.5}, LAST, 0.01),
    "fsp": ({"reduction": "mean", "pool": "avg"}, ["stem", *STAGES], 0.05),
}
# RepDistiller's table, in percent.
TABLE = {
    "crd_resnet56_resnet20": {
        "teacher": 72.34, "ce": 69.06, "kd": 70.66, "fitnet": 69.21, "at": 70.55, "sp": 69.67, "cc": 69.63,
        "vid": 70.38, "rkd": 69.61, "pkt": 70.34, "ab": 69.47, "ft": 69.84, "fsp": 69.95, "crd": 71.16,
    },
    "crd_resnet32x4_resnet8x4": {
        "teacher": 79.42, "ce": 72.50, "kd": 73.33, "fitnet": 73.50, "at": 73.44, "sp": 72.94, "cc": 72.97,
        "vid": 73.09, "rkd": 71.90, "pkt": 73.64, "ab": 73.17, "ft": 72.86, "fsp": 72.62, "crd": 75.51,
    },
}  # fmt: skip
FSP_TABLE = {
    ("cifar10", "full"): (91.75, 93.48), ("cifar10", "fresh"): (90.64, 92.6), ("cifar10", "hints"): (91.72, 92.98),
    ("cifar10", "copied"): (92.14, 93.26), ("cifar10", "shuffled"): (92.08, 93.67), ("cifar100", "full"): (64.15, 69.3),
    ("cifar100", "fresh"): (61.32, 67.2), ("cifar100", "hints"): (62.55, 67.6),
    ("cifar100", "copied_32k"): (64.65, 68.8),
}  # fmt: skip


def paper(name: str, *overrides: str) -> Sweep:
    return load(CONFIGS / "papers" / f"{name}.yaml", overrides)


def stages(sweep: Sweep, **axes: str) -> dict[str, StageSpec]:
    """Of the first trial that has these values."""
    return resolve_stages(next(t for t in sweep.trials if axes.items() <= t.axes.items()))


def figures(name: str) -> list[tuple[dict[str, Any], str | list[str] | None, str, float]]:
    return [(one.where, one.stage, one.figure, one.value) for one in paper(name).expect if one.over is None]


def percent(value: float) -> float:
    return round(100 * value, 2)


@pytest.mark.parametrize("name", PAPERS)
def test_every_stage_is_trained_by_its_sources_recipe(name: str) -> None:
    epochs, batch, lr, milestones, gamma, decay, warmup = RECIPES[name]
    for trial in paper(name).trials:
        assert trial.experiment.protocol == "paper"
        for stage, spec in resolve_stages(trial).items():
            train, own = spec.train, OTHERS.get((name, stage), {})
            assert (train.optimizer, train.momentum, train.nesterov, train.precision) == ("sgd", 0.9, False, "fp32")
            assert (train.batch_size, train.gamma, train.weight_decay) == (batch, gamma, decay)
            assert (train.warmup_epochs, train.label_smoothing) == (warmup, 0)
            paraphraser = stage == "init" and spec.terms[0].name == "ft"
            assert train.grad_clip == (10 if paraphraser else None)
            assert spec.engine.processes == 1
            assert spec.data.val_fraction == 0
            assert spec.data.augment.crop == 4
            assert spec.data.augment.flip is (name != "fsp_ensemble")
            assert spec.data.limit is None
            assert all(
                ref.cache is None and (ref.from_ or "").partition("@")[1] == "" for ref in spec.teachers.values()
            )
            if name == "fsp_ensemble" and stage.startswith(("net", "init")):
                continue  # whose rates and epochs differ by trial: see the iterations below
            assert train.schedule == own.get("schedule", "multistep")
            assert (train.epochs, train.milestones) == (own.get("epochs", epochs), own.get("milestones", milestones))
            if (name, stage) not in OTHERS:
                assert train.lr == lr


@pytest.mark.parametrize("name", PAIRS)
def test_the_benchmarks_methods_have_its_weights_and_taps(name: str) -> None:
    sweep = paper(name)
    assert sweep.axes["method"] == ["ce", *(m for m in TABLE[name] if m not in ("teacher", "ce"))]
    for method, (labels, weight, options, taps) in METHODS.items():
        student = stages(sweep, method=method)["student"]
        ce, term = student.terms
        assert (ce.name, ce.weight, term.name, term.weight, term.options) == ("ce", labels, method, weight, options)
        assert (term.lr, term.weight_decay) == (None, None)
        assert [term.taps.student, term.taps.teacher] == [taps, taps] if term.taps else taps is None
        assert student.teachers["teacher"].from_ == "teacher"


@pytest.mark.parametrize("method", INITS)
@pytest.mark.parametrize("name", PAIRS)
def test_a_first_stage_has_thirty_epochs_at_one_rate(name: str, method: str) -> None:
    options, taps, lr = INITS[method]
    found = stages(paper(name), method=method)
    init, student = found["init"], found["student"]
    (term,) = init.terms
    assert (term.name, term.weight, term.options, init.train.lr) == (method, 1, options, lr)
    assert term.taps is not None
    assert term.taps.student == term.taps.teacher == taps
    if method == "ft":
        assert init.train_only == []
        assert student.terms[1].init_from == "init"
        assert init.student == found["teacher"].student
    else:
        assert student.init_from is not None
        assert student.init_from.from_ == "init"
        assert [t.name for t in student.terms] == ["ce"]
        assert not student.teachers


def test_the_benchmarks_networks() -> None:
    small, wide = (stages(paper(name)) for name in PAIRS)
    assert [small[one].student.arguments for one in ("teacher", "student")] == [{"depth": 56}, {"depth": 20}]
    widths = {"widths": [32, 64, 128, 256]}
    assert [wide[one].student.arguments for one in ("teacher", "student")] == [
        {"depth": 32} | widths, {"depth": 8} | widths,
    ]  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_benchmarks_figures_are_those_of_the_last_epoch(name: str) -> None:
    found = {where.get("method", stage): percent(value) for where, stage, _, value in figures(name)}
    assert found == TABLE[name]
    assert {figure for _, _, figure, _ in figures(name)} == {"top1"}


def test_assistants_have_their_own_weights_and_temperatures() -> None:
    sweep = paper("takd")
    direct, assisted = (stages(sweep, path=path) for path in ("direct", "assisted"))
    heard = {
        "direct": direct["student"], "assisted": assisted["student"], "assistant": assisted["assistant"],
    }  # fmt: skip
    settings = {
        name: (spec.student.arguments["depth"], spec.teachers["teacher"].from_, *(term.weight for term in spec.terms),
               spec.terms[1].options)
        for name, spec in heard.items()
    }  # fmt: skip
    mean = {"reduction": "elementmean"}
    assert settings == {
        "direct": (8, "teacher", 0.8, 0.2, {"temperature": 2} | mean),
        "assisted": (8, "assistant", 0.85, 0.15, {"temperature": 5} | mean),
        "assistant": (20, "teacher", 0.5, 0.5, {"temperature": 5} | mean),
    }
    assert direct["teacher"].student.arguments == {"depth": 110}
    assert [(where["path"], stage, figure, percent(value)) for where, stage, figure, value in figures("takd")] == [
        ("direct", "teacher", "top1_best_on_test", 72.38), ("assisted", "assistant", "top1_best_on_test", 68.11),
        ("alone", "student", "top1_best_on_test", 61.37), ("direct", "student", "top1_best_on_test", 61.41),
        ("assisted", "student", "top1_best_on_test", 61.82),
    ]  # fmt: skip


def test_growing_students_hear_both_at_temperature_three() -> None:
    sweep = paper("gskd")
    for label, (lam, gam) in {
        "lam10_gam05": (0.1, 0.05), "lam10_gam80": (0.1, 0.8), "lam40_gam10": (0.4, 0.1), "lam80_gam10": (0.8, 0.1),
    }.items():  # fmt: skip
        found = stages(sweep, weights=label)
        assert [spec.student.arguments["depth"] for spec in found.values()] == [26, 8, 14, 20, 26]
        assert [term.weight for term in found["r8"].terms] == [pytest.approx(1 - lam), lam]
        for name, before in (("r14", "r8"), ("r20", "r14"), ("r26b", "r20")):
            assert [term.weight for term in found[name].terms] == [pytest.approx(1 - lam - gam), lam, gam]
            options = {"temperature": 3, "reduction": "elementmean"}
            assert [term.options for term in found[name].terms[1:]] == [options, options]
            assert [found[name].teachers[role].from_ for role in ("teacher", "previous")] == ["r26", before]
        assert found["r26"].data.name == "cifar10"
    assert [(stage, percent(value)) for _, stage, _, value in figures("gskd")] == [
        ("r26", 89.23), ("r8", 84.58), ("r8", 83.83), ("r8", 82.71),
    ]  # fmt: skip


def test_the_native_ensemble_has_three_branches_and_no_quoted_figure() -> None:
    sweep = paper("one")
    student = stages(sweep, method="one")["student"]
    assert student.strategy == "one"
    assert student.options == {"branches": 3, "split_at": "stage2", "temperature": 3, "ramp": pytest.approx(80 / 300)}
    assert student.student.arguments == {"depth": 32}
    assert figures("one") == []
    assert [(one.where, one.over, one.value) for one in sweep.expect] == [({"method": "one"}, {"method": "ce"}, 0.01)]


def test_teacher_free_weights_are_those_of_resnet18() -> None:
    sweep = paper("tfkd")
    assert [term.weight for term in stages(sweep, method="self")["student"].terms] == [0.05, 0.95 * 50]
    assert stages(sweep, method="self")["student"].terms[1].options == {"temperature": 6, "reduction": "elementmean"}
    virtual = stages(sweep, method="virtual")["student"]
    assert [term.weight for term in virtual.terms] == [0.9, 0.1]
    assert virtual.terms[1].options == {"temperature": 20, "temper_student": False}
    ((_, teacher),) = virtual.teachers.items()
    assert teacher.virtual is not None
    assert teacher.virtual.correct == 0.99
    assert stages(sweep, method="smoothed")["student"].terms[0].options == {"label_smoothing": 0.1}
    first = stages(sweep, method="self")
    assert first["first"].student == first["student"].student
    assert first["first"].seed not in {int(seed) for seed in sweep.axes["seed"]}
    assert {where["method"]: percent(value) for where, _, _, value in figures("tfkd")} == {
        "ce": 75.87, "smoothed": 77.26, "self": 77.10, "virtual": 77.36,
    }  # fmt: skip
    assert {figure for _, _, figure, _ in figures("tfkd")} == {"top1_best_on_test"}


def test_the_ensembles_have_their_papers_figures_and_iterations() -> None:
    sweep = paper("fsp_ensemble")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for where, _, figure, value in figures("fsp_ensemble"):
        found.setdefault((where["task"], where["first"]), {})[figure] = percent(value)
    assert {key: (both["top1"], both["ensemble_top1"]) for key, both in found.items()} == FSP_TABLE
    assert {(trial.axes["task"], trial.axes["first"]) for trial in sweep.trials} == FSP_TABLE.keys()
    thousands = {"full": 192, "fresh": 63, "hints": 98, "copied": 84, "shuffled": 126, "copied_32k": 95}
    rates = {"hints": {1e-4}, "copied": {1e-3}, "shuffled": {1e-3}, "copied_32k": {1e-3}}
    for trial in sweep.trials:
        found_here, first = resolve_stages(trial), trial.axes["first"]
        own = {name: spec.train for name, spec in found_here.items() if name.startswith(("net", "init"))}
        assert sum(train.epochs * 200 for train in own.values()) == 1000 * thousands[first]
        assert {train.lr for name, train in own.items() if name.startswith("init")} == rates.get(first, set())
        assert {train.lr for name, train in own.items() if name.startswith("net")} == {0.1}
        assert found_here["teacher"].student.arguments == {"depth": 26 if trial.axes["task"] == "cifar10" else 32}


@pytest.mark.parametrize("name", PAPERS)
def test_a_head_says_what_a_reader_must_know(name: str) -> None:
    lines = (CONFIGS / "papers" / f"{name}.yaml").read_text().splitlines()
    head = " ".join(line[2:] for line in lines if line.startswith("# "))
    for said in (f"python launch/sweep.py configs/papers/{name}.yaml", "Source: ", "Expect ", "Needs CIFAR-", "Takes "):
        assert said in head, said


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MATRIX) if name == "crd_resnet32x4_resnet8x4" else name for name in PAPERS]
)
def test_it_is_planned_before_its_data_is_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSCALE_DATA", str(tmp_path / "nothing"))
    one_seed = [] if name == "fsp_ensemble" else ["seed=0"]
    plan = make_plan(paper(name, *one_seed), Root(tmp_path / "runs"))
    assert not (tmp_path / "nothing").exists()
    trained = [stage for stage in plan.stages.values() if stage.kind == "train"]
    for stage in trained:
        train = stage.definition["spec"]["train"]
        assert stage.cost.steps == train["epochs"] * (50_000 // train.get("batch_size", 128))
    assert {stage.definition["data"]["info"]["size"] for stage in trained} == {32}
