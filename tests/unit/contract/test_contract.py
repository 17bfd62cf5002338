"""Each promise finds what breaks it, and names the line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdscale.contract.checks import Result
from kdscale.contract.named import find, results
from kdscale.errors import ConfigError, PluginError

HERE = Path(__file__).parent


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with a package of broken plug-ins."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    (folder / "__init__.py").touch()
    shutil.copy(HERE / "broken.py", folder / "parts.py")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "spoilt"]:
        del sys.modules[name]


def broken(name: str, path: Path, **options: object) -> list[Result]:
    found = find(f"spoilt.parts:{name}", [path])
    return [result for result in results(found, options) if result.state == "FAIL"]


LOSSES = [
    ("Scalar", "returns (B,)", "returns () for B = 6"),
    ("OverTheBatch", "sample i alone", "alone and"),
    ("TeachesTheTeacher", "a gradient reaches", "reaches the teacher"),
    ("Detached", "a gradient reaches", "no gradient reaches the student"),
    ("Exponential", "logits of", "bf16 inputs, logits of 3e+04: nan from exp"),
    ("InHalf", "computed in fp32", "returns torch.bfloat16"),
    ("Cosine", "rows of zeros", "nan in the gradient of sqrt"),
    ("ReadsLabels", "reads no more", 'no "labels" in needs'),
    ("Noisy", "two runs agree", "differ"),
    ("Noisy", "draws nothing", "torch.randn draws anew"),
    ("Crashes", "returns (B,)", "raises IndexError"),
    ("NoDefault", "options in a Config", "option margin has no default"),
]
OTHERS = [
    ("Narrower", "shapes out", "the student's logits: (6, 5) in, (6, 2) out"),
    ("Judging", "reads no more", "judges_labels = False"),
    ("Unasked", "mask", "selects is False"),
    ("Forgetful", "state_dict holds", "after a resume it goes on otherwise"),
    ("Owning", "exports a student", "extra."),
    ("Owning", "frozen parts", "changes all the same"),
    ("MixesInEval", "eval:", "depend on its batch"),
    ("KeepsAside", "state_dict", "answers otherwise"),
    ("WrongTaps", "the constructor", "none of classes"),
    ("WrongTaps", "taps exist", "stage9"),
    ("Branching", "torch.export", "torch.export: "),
]


@pytest.mark.parametrize(("name", "promise", "said"), LOSSES + OTHERS)
def test_what_breaks_a_promise_is_found(name: str, promise: str, said: str, package: Path) -> None:
    found = [result for result in broken(name, package) if promise in result.promise]
    assert found, broken(name, package)
    assert said in found[0].said


@pytest.mark.parametrize("name", ["Exponential", "Cosine", "Noisy", "Crashes"])
def test_the_line_is_named(name: str, package: Path) -> None:
    lines = (HERE / "broken.py").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"class {name}("))
    number = next(i for i in range(start, len(lines)) if "# HERE" in lines[i]) + 1
    assert any(result.where.startswith(f"spoilt/parts.py:{number}") for result in broken(name, package))


def test_a_required_option_may_be_given(package: Path) -> None:
    assert broken("NoDefault", package, margin=0.5) == []


def test_taps_are_made_up_as_the_loss_takes_them(package: Path) -> None:
    every = list(results(find("spoilt.parts:OneMap", [package]), {}))
    assert [result for result in every if result.state == "FAIL"] == []
    assert any("taps [4, 6, 6]" in result.said for result in every)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("spoilt.parts", ConfigError, r"which\? spoilt.parts:Scalar"),
        ("spoilt.part", ConfigError, "No module named 'spoilt.part'"),
        ("spoilt.parts:Scaler", ConfigError, r"has no class Scaler; there are: Scalar"),
        ("spoilt.parts:", ConfigError, "say package.module"),
        ("spoilt.parts:Batch", ConfigError, "Batch is no loss, modifier, strategy"),
        ("spoilt.worse", PluginError, "importing spoilt.worse fails: SyntaxError"),
    ],
)
def test_what_cannot_be_checked(text: str, error: type[Exception], said: str, package: Path) -> None:
    (package / "spoilt" / "worse.py").write_text("def (:\n")
    with pytest.raises(error, match=said):
        find(text, [package])


def test_what_cannot_be_asked_yet_is_said(package: Path) -> None:
    every = list(results(find("spoilt.parts:Crashes", [package]), {}))
    assert [result.state for result in every[-2:]] == ["FAIL", "skip"]
    assert every[-1].promise == "8 more"
