"""`--list taps`: what can be named, and in which form."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from kdscale.jobs.listings import plugins_of


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def line_of(path: str, said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith(f"{path} "))


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_forms_of_a_foreign_model(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["img_size=28", "patch_size=7", "embed_dim=24", "depth=1", "num_heads=2"]
    assert plugins_of(["taps", "timm:vit_tiny_patch16_224", *arguments, "size=28"]) == 0
    said = capsys.readouterr().out
    assert "17x24" in line_of("blocks.0", said)
    assert line_of("blocks.0", said).rstrip().endswith("map, pooled, cls, tokens")
    assert line_of("head", said).rstrip().endswith("pooled")


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_tokens_that_the_model_does_not_count_need_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugins_of(["taps", "torchvision:vit_b_16", "image_size=32", "size=32"]) == 0
    said = capsys.readouterr().out
    assert line_of("encoder.layers.encoder_layer_8", said).rstrip().endswith("with prefix: N")


def test_models_with_names_of_their_own_have_no_column_of_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert plugins_of(["taps", "resnet_cifar", "depth=8"]) == 0
    said = capsys.readouterr().out
    assert "stage1.pre" in said
    assert "pooled, tokens" not in said
