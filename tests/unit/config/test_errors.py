"""Bad input is one line: file and line, or the command line; the key; what; the nearest valid key."""

# ruff: noqa: E501 - one case a line
from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdscale.errors import ConfigError
from tests.unit.config.conftest import Loading

ENSEMBLE = "stages.student.teachers.u={from: teacher@best} stages.student.teachers.both={mean: [teacher, u]"
SWEEP = "sweep: {method: {a: {train.lr: 0.3}, b: %s}}\n"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("train.lrr=1", "train.lrr: unknown key; did you mean lr?"),
        ("stages.student.train.lrr=1", "stages.student.train.lrr: unknown key; did you mean lr?"),
        ("stages.studnet.train.lr=1", "stages.studnet.student: is missing: no stage is called studnet; did you mean student?"),
        ("stages.student.studnt=1", "stages.student.studnt: unknown key; did you mean student?"),
        ("stages.student.losses.kd.temprature=1", "stages.student.losses.kd.temprature: unknown key; did you mean temperature?"),
        ("stages.student.student.dpth=1", "stages.student.student.dpth: unknown key; did you mean depth? (resnet_cifar)"),
        ("stages.student.student.model=resnet_cifr", "stages.student.student.model: there is no model resnet_cifr; did you"),
        ("stages.student.losses.kdd.weight=1", "stages.student.losses has no item kdd; did you mean kd?"),
        ("stages.student.losses=[{name: kdd}]", "stages.student.losses.kdd.name: there is no loss kdd; did you mean kd?"),
        ("stages.student.losses=[{}]", "stages.student.losses.0.name: is missing"),
        ("stages.student.strategy=distil", "stages.student.strategy: there is no strategy distil; did you mean distill?"),
        ("stages.student.losses.kd.modifiers=[{name: zscor}]", "stages.student.losses.kd.modifiers.zscor: there is no modifier"),
        ("data.name=fashion_mnst", "data.name: there is no data set fashion_mnst; did you mean fashion_mnist?"),
        ("data.options={clases: 3} data.name=synthetic", "data.options.clases: unknown key; did you mean classes?"),
        ("train.epochs=ten", "train.epochs: input should be a valid integer, unable to parse string as an integer (it is 'ten')"),
        ("train.lr=-1", "train.lr: input should be greater than 0 (it is -1)"),
        ("train.bn=global", "train.bn: input should be 'local' or 'sync' (it is 'global')"),
        ("train=", "train: is empty; give it a value, or leave it out"),
        ("data.augment={crop: 4, resized_crop: {}}", "data.augment: crop and resized_crop are alternatives"),
        ("stages.student.data.augment={mixup: 1, cutmix: 1}", "stages.student.data.augment: mixup and cutmix are alternatives"),
        ("stages.student.teachers.teacher.from=techer", "stages.student.teachers.teacher.from: techer is no stage; did you mean"),
        ("stages.student.teachers.teacher.from=teacher@bst", "stages.student.teachers.teacher.from: teacher@bst: say STAGE"),
        ("stages.student.teachers.teacher.from=teacher@epoch:99", "teacher trains for 10 epochs"),
        ("stages.student.teachers.teacher.from=teacher@best data.val_fraction=0", "no validation accuracy to be judged by"),
        ("stages.student.teachers.teacher.from=teacher@acc:0.9 stages.teacher.train.epochs=0", "it trains for no epoch"),
        ("stages.student.init_from=none", "stages.student.init_from: none is no stage"),
        ("stages.student.init_from=teacher#kd", "stages.student.init_from: a network is taken whole; parts that a term"),
        ("stages.student.teachers.teacher.from=teacher#kd", "taken by a term: init_from: teacher#kd"),
        ("stages.student.strategy=split_head", "stages.student.strategy: split_head takes what follows its head from"),
        ("stages.student.strategy=split_head stages.student.init_from=teacher", "student.init_from: teacher is another network"),
        ("stages.student.student.split_head={split_at: stage2}", "stages.student.student.split_head.channels: "),
        ("stages.student.init_skip=[head]", "stages.student.init_skip: there is no init_from to skip parts of"),
        ("stages.student.losses.kd.teacher=t", "stages.student.losses.kd.teacher: t is no teacher of this stage; known: teacher"),
        ("stages.teacher.losses=[{name: kd}]", "stages.teacher.losses.kd: kd needs a teacher: set teacher: NAME"),
        ("stages.student.teachers.u={cache: {}}", "stages.student.teachers.u.from: is missing: name a stage, or give the members"),
        ("stages.student.teachers.teacher.of=logits", "stages.student.teachers.teacher.of: is for an ensemble, which names its members"),
        ("stages.student.teachers.teacher.weights=[1]", "stages.student.teachers.teacher.weights: is for an ensemble, which names"),
        ("stages.student.teachers.both={from: teacher, mean: [u]}", "stages.student.teachers.both.from: an ensemble is no stage: give teacher a name"),
        (f"{ENSEMBLE}, cache: {{}}}}", "stages.student.teachers.both.cache: a mean is not kept, but what it is made from: set it in teacher, u"),
        ("stages.student.teachers.both={mean: []}", "stages.student.teachers.both.mean: an ensemble has at least two members; say mean:"),
        ("stages.student.teachers.both={mean: [teacher]}", "both.mean: an ensemble has at least two members; listen to teacher itself"),
        ("stages.student.teachers.both={mean: teacher}", "both.mean: input should be a valid list (it is 'teacher')"),
        ("stages.student.teachers.both={mean: [teacher, teacher]}", "both.mean: teacher is named twice; give it a larger weight"),
        ("stages.student.teachers.both={mean: [techer, both]}", "both.mean: techer is no teacher of this stage; did you mean teacher?"),
        ("stages.student.teachers.both={mean: [teacher, both]}", "both.mean: both cannot be a member of itself"),
        (f"{ENSEMBLE}}} stages.student.teachers.all={{mean: [teacher, both]}}",
         "stages.student.teachers.all.mean: both is an ensemble itself; name its members instead (teacher, u)"),
        (f"{ENSEMBLE}, weights: [1]}}", "stages.student.teachers.both.weights: 1 weights for 2 members; give one each"),
        (f"{ENSEMBLE}, weights: [1, 0]}}", "stages.student.teachers.both.weights.1: input should be greater than 0 (it is 0)"),
        (f"{ENSEMBLE}, weights: [1, .inf]}}", "stages.student.teachers.both.weights.1: input should be a finite number"),
        (f"{ENSEMBLE}, of: probs}}", "stages.student.teachers.both.of: input should be 'logits' or 'probabilities' (it is 'probs')"),
        (f"{ENSEMBLE}, menas: []}}", "stages.student.teachers.both.menas: unknown key; did you mean mean?"),
        (f"{ENSEMBLE}}} stages.student.losses.kd.teacher=bth", "bth is no teacher of this stage; did you mean both?"),
        (f"{ENSEMBLE}}} stages.student.losses=[{{name: kd}}]", "kd needs a teacher: set teacher: NAME (this stage has teacher, u, both)"),
        (f"{ENSEMBLE}}} stages.student.losses.kd.teacher=both stages.student.losses.kd.taps.teacher=[stage1]",
         "stages.student.losses.kd.taps.teacher: both is an ensemble, whose members differ in their features; listen to one of them (teacher: teacher or u)"),
        ("stages.student.losses.kd.taps={teacher: {module: b, as: mapp}}",
         "losses.kd.taps.teacher.as: input should be 'map', 'pooled', 'cls' or 'tokens' (it is 'mapp')"),
        ("stages.student.losses.kd.taps={teacher: [a, {module: b, ass: map}]}", "kd.taps.teacher.1.ass: unknown key; did you mean as?"),
        ("stages.student.losses.kd.taps={teacher: {module: b, prefix: 1}}", "losses.kd.taps.teacher.as: is missing"),
        ("stages.student.losses.kd.taps={teacher: {as: map}}", "losses.kd.taps.teacher.module: is missing"),
        ("stages.student.losses.kd.taps={teacher: {module: b, tap: b, as: map}}", "taps.teacher: tap and module are two words for one"),
        ("stages.student.losses.kd.taps={teacher: {module: b, as: cls, grid: [2, 2]}}", "taps.teacher: grid is for as: map or tokens; cls has"),
        ("stages.student.losses.kd.taps={teacher: {module: b, as: map, grid: 4}}", "taps.teacher.grid: input should be a valid tuple (it is 4)"),
        ("stages.student.losses.kd.taps={teacher: {module: b, as: map, prefix: -1}}", "taps.teacher.prefix: input should be greater than or"),
        ("stages.student.losses.kd.taps={teacher: 3}", "losses.kd.taps.teacher: input should be a valid string (it is 3)"),
        ("stages.student.losses=[{name: ce},{name: ce}]", "stages.student.losses.ce: two terms are called ce; give one of"),
        ("stages.student.losses=[]", "stages.student.losses: a stage that trains needs a term"),
        ("stages.student.losses.kd.id=a.b", "stages.student.losses.1.id: 'a.b' is part of folder names and key paths"),
        ("stages.data={student: {model: vgg}, losses: [{name: ce}]}", "stages.data: the conversion of the data set has this name"),
        ("name=a/b", "name: 'a/b' is part of folder names"),
        ("stages.student.losses.kd.weight=-1", "stages.student.losses.kd.weight: -1: a weight is a number that is not below 0"),
        ("stages.student.losses.kd.weight=lam", "stages.student.losses.kd.weight: lam is not in params (there are none)"),
        ("stages.student.losses.kd.weight={linaer: [1, 2]}", "is no schedule; there are: linear, periodic, warmup"),
        ("params.lamb=0.3", "params.lamb: no weight of any trial names it"),
        ("stages.teacher.student.weights=w.pt", "stages.teacher.student.weights: no such file: "),
        ("stages.teacher.student.class_names=w.txt", "stages.teacher.student.class_names: "),
        ("stages.teacher.student.model=birds.nets:Net", "birds may not be imported; add it to plugins: {allow: [birds]}"),
        ("name.x=1", "name.x: name is 'pair' and has no keys"),
        ("name=a,b", "name belongs to the whole sweep and cannot differ between its trials"),
        ("tracking.uri=a,b", "tracking.uri belongs to the whole sweep"),
        ("stages.teacher.teachers={t: {from: student}}", "stages form a cycle: "),
        ("engine.zero_stage=2", "engine.zero_stage: ddp shards nothing; set engine.name: deepspeed"),
        ("stages.student.engine.zero_stage=1", "stages.student.engine.zero_stage: ddp shards nothing; set engine.name"),
        ("engine.zero_stage=4 engine.name=deepspeed", "engine.zero_stage: input should be 0, 1, 2 or 3"),
        ("engine.name=deepspeed train.precision=fp16", "train.precision: engine deepspeed trains in fp32 or bf16"),
        ("engine={name: deepspeed, zero_stage: 3} train.compile=true", "train.compile: ZeRO 3 gathers weights between modules"),
        # virtual teachers
        ("stages.student.teachers.teacher.virtual={}", "teacher.virtual: a virtual teacher answers from the labels alone; leave from"),
        ("stages.student.teachers.teacher={virtual: {correct: 1}}", "teacher.virtual.correct: input should be less than 1"),
        ("stages.student.teachers.teacher={virtual: {}, cache: true}", "from the labels alone; leave cache out"),
        ("stages.student.teachers.v={virtual: {}} stages.student.teachers.both={mean: [teacher, v]}", "both.mean: v is virtual"),
        ("stages.student.teachers.teacher={virtual: {}} stages.student.losses=[{name: at, taps: {student: stage1, teacher: stage1}}]",
         "losses.at.taps.teacher: a virtual teacher has no features"),
        ("stages.student.drop=-1", "stages.student.drop: input should be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_the_command_line(overrides: str, said: str, load_text: Loading) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("", *re.split(r" (?=[a-z_.]+=)", overrides))
    line = str(caught.value)
    assert said in line
    assert "\n" not in line
    assert line.startswith("command line: ") or "cycle" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epochs: 2}\ntrain: {lr: 3}\n", "x.yaml:15: train is given twice"),
        ("train:\n  epochs: 2\n  lrr: 3\n", "x.yaml:16: train.lrr: unknown key; did you mean lr?"),
        ("  # comment\n  third:\n    student: {model: vgg}\n    losses:\n    - name: ce\n      wieght: 3\n",
         "x.yaml:19: stages.third.losses.ce.wieght: unknown key"),
        ("train:\n", "x.yaml:14: train: is empty; give it a value, or leave it out"),
        ("extends: no.yaml\n", "x.yaml:14: extends: no.yaml: no such file"),
        ("extends: kdscale:no.yaml\n", "shipped are: base/cifar100_benchmark.yaml, base/fashion_mnist.yaml"),
        ("extends: kdscale:../../pyproject.toml\n", "leaves the folder of shipped configs"),
        ("extends: x.yaml\n", "x.yaml: extends itself: x.yaml -> x.yaml"),
        ("extends: 3\n", "x.yaml:14: extends: name a file"),
        ("params: {lam: 2}\ntrain: {lr: 1, epochs: }\n", "x.yaml:15: train.epochs: is empty"),
        ("sweep: [1]\n", "x.yaml:14: sweep: is a mapping of axes"),
        ("sweep: {seed: 3}\n", "x.yaml:14: sweep.seed: 3 is no axis"),
        ("sweep: {seed: []}\n", "x.yaml:14: sweep.seed: the axis is empty"),
        ("sweep: {seed: [0, 0]}\n", "x.yaml:14: sweep.seed: a value is given twice: 0, 0"),
        ("sweep:\n  seed: [0, -x]\n", "x.yaml:15 (sweep.seed): seed: input should be a valid integer"),
        ("sweep: {zip: [{seed: [1], train.lr: [1, 2]}]}\n", "zipped keys need equally many values: seed has 1, train.lr has 2"),
        ("sweep: {zip: 3}\n", "x.yaml:14: sweep.zip: a list of mappings is meant"),
        ("sweep: {random: {trials: 2, sed: 1, space: {seed: {integer: [0, 1]}}}}\n", "sweep.random: say {trials: N"),
        ("sweep: {random: {trials: 2, space: {train.lr: {loguniform: [0, 1]}}}}\n", "sweep.random.space.train.lr: "),
        ("sweep: {random: {trials: 2, space: {train.lr: {uniform: [a, 1]}}}}\n", "sweep.random.space.train.lr: "),
        ("sweep: {m: {a: [1]}}\n", "x.yaml:14: sweep.m.a: a named patch is a mapping of keys, not [1]"),
        ("sweep: {m: {a: {use: no.yaml}}}\n", "x.yaml:14: sweep.m.a.use: "),
        ("sweep: {m: {a: {name: b}}}\n", "sweep.m.a: name belongs to the whole sweep"),
        ("sweep: {seed: [1], exclude: [{sed: 1}]}\n", "sweep.exclude.0.sed: no such axis; did you mean seed?"),
        ("sweep: {seed: [1], exclude: [{seed: 2}]}\n", "sweep.exclude.0.seed: 2 is no value of it; there are: 1"),
        ("sweep: {seed: [1], exclude: [{seed: 1}]}\n", "x.yaml: sweep.exclude leaves no trial"),
        (SWEEP % "{train.lrr: 1}", "x.yaml:14 (sweep.method.b): train.lrr: unknown key; did you mean lr? (in trial b)"),
        (SWEEP % "{stages.student.losses.at.weight: 1}", "x.yaml:14 (sweep.method.b): stages.student.losses has no item at"),
        (SWEEP % "{stages.student.teachers: {}}", "stages.student.losses.kd.teacher: teacher is no teacher of this stage"),
    ],
)  # fmt: skip
def test_the_file(text: str, said: str, load_text: Loading) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_one_trial_of_many_that_is_wrong_is_named(load_text: Loading) -> None:
    with pytest.raises(
        ConfigError,
        match=r"stages\.student\.losses\.ce\.weight: 1 - lam is -0\.2 here \(lam 1\.2\).*\(in trial s|1\.2\)",
    ):
        load_text("params: {lam: 1}\n", "stages.student.losses.ce.weight=1 - lam", "params.lam=0.8,1.0,1.2")


def test_a_value_from_the_top_level_is_blamed_there(load_text: Loading) -> None:
    with pytest.raises(ConfigError, match=r"^x\.yaml:15: data\.name: there is no data set"):
        load_text("data:\n  name: no\n")


@pytest.mark.parametrize("text", ["", "name: a\n", "stages: {}\n"])
def test_a_config_without_stages(text: str, load_text: Loading) -> None:
    with pytest.raises(ConfigError, match=r"^x\.yaml(:1)?: stages: "):
        load_text(text, whole=True)


def test_a_config_that_is_not_there(load_text: Loading) -> None:
    from kdscale.config.load import load

    with pytest.raises(ConfigError, match=r"^no\.yaml: no such file"):
        load("no.yaml")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("{folder}/mien.yaml", "{folder}/mine.yaml"), ("kdscale:quikstart.yaml", "kdscale:quickstart.yaml")],
    ids=["own", "shipped"],
)
def test_the_file_that_was_meant(typed: str, meant: str, tmp_path: Path) -> None:
    from kdscale.config.load import load

    (tmp_path / "mine.yaml").touch()
    with pytest.raises(ConfigError, match=re.escape(f"; did you mean {meant.format(folder=tmp_path)}?")):
        load(typed.format(folder=tmp_path))
