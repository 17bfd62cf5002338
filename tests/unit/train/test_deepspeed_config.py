from __future__ import annotations

from typing import Any

import pytest

from kdscale.config.schema import TrainConfig
from kdscale.engines.deepspeed import LARGEST_BUCKET, deepspeed_config


def made(stage: int = 2, elements: int = 1000, world: int = 2, **options: object) -> dict[str, Any]:
    train = TrainConfig.model_validate({"batch_size": 64, "precision": "fp32"} | options)
    return deepspeed_config(train, stage, world=world, elements=elements)


@pytest.mark.parametrize(("asked", "given"), [(None, 0.0), (0.5, 0.5), (5.0, 5.0)])
def test_clipping_is_always_given(asked: float | None, given: float) -> None:
    """Left out, DeepSpeed 0.19 clips at 1.0."""
    assert made(grad_clip=asked)["gradient_clipping"] == given


def test_the_batch_is_shared_out() -> None:
    config = made(accumulation=4)
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [config[name] for name in sizes] == [64, 8, 4]


@pytest.mark.parametrize(("precision", "on"), [("fp32", False), ("bf16", True)])
def test_weights_and_gradients_stay_fp32(precision: str, on: bool) -> None:
    config = made(precision=precision)
    assert config["torch_autocast"] == {"enabled": on, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert not config["bf16"]["enabled"]
    assert not config["fp16"]["enabled"]
    assert config["communication_data_type"] == config["data_types"]["grad_accum_dtype"] == "fp32"


def test_optimizer_and_schedule_are_ours() -> None:
    config = made()
    assert config["zero_allow_untested_optimizer"]
    assert not {"optimizer", "scheduler"} & config.keys()


def test_every_number_of_a_stage_is_given() -> None:
    """A bucket is memory that is taken at once: no more than there are gradients."""
    zero = made(stage=3, elements=1000)["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["reduce_bucket_size"] == 1000
    assert made(elements=10**9)["zero_optimization"]["reduce_bucket_size"] == LARGEST_BUCKET
    named = {"allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size"}
    named |= {f"stage3_{name}" for name in ("max_live_parameters", "max_reuse_distance")}
    named |= {f"stage3_{kind}_persistence_threshold" for kind in ("param", "model")}
    assert named <= zero.keys()
