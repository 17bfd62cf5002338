"""From a config to a network: constructor arguments, initial weights, files, class order, input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from kdscale.api import DatasetInfo
from kdscale.config.schema import InputConfig, PluginsConfig, StudentConfig
from kdscale.config.taps import Tap
from kdscale.draws import seed_of
from kdscale.errors import CheckpointMismatch, ConfigError, KDScaleError, TapError
from kdscale.nn.branches import branch_out
from kdscale.nn.class_order import class_map
from kdscale.nn.foreign import Origin, check_arguments, origin_of
from kdscale.nn.network import DRY_IMAGES, Network, NetworkInput
from kdscale.nn.split_head import check_taps, splice
from kdscale.nn.tap_forms import fitting, told_by
from kdscale.nn.taps import Catch
from kdscale.nn.weights import fit_tensors, load_weights, read_tensors, tensors_hash

__all__ = ["TapRow", "build_network", "list_taps", "own_input"]

log = logging.getLogger(__name__)


class TapRow(NamedTuple):
    """One place in a network that a tap can name, in the order in which they run."""

    path: str
    name: str
    """The model's own name for it; empty when it has none."""
    shape: tuple[int, ...] | None
    """Without B; None when it gives no tensor."""
    params: int
    """Parameters run so far, this one's included."""
    usable: str
    """Empty, or why it cannot be a tap."""
    forms: tuple[str, ...] = ()
    """In which a tap can read it (`as: map`, say), with no more than its name."""


def build_network(  # noqa: PLR0913
    student: StudentConfig,
    info: DatasetInfo,
    size: int,
    *,
    taps: Sequence[Tap] = (),
    seed: int = 0,
    part: str = "student",
    snapshot: Path | None = None,
    views: tuple[int, int] | None = None,
    device: str = "cpu",
    plugins: PluginsConfig | None = None,
) -> Network:
    """Build the network that a config describes.

    Its initial weights are a function of (seed, part) alone: they depend on no generator's state, change
    none, and are the same whatever device the network goes to.

    Args:
        student: the model, its arguments, and its weights file, if any.
        info: classes, channels and statistics of the data that the network learns or has learnt from, for
            whatever the config leaves open.
        size: pixels a side of that data's views.
        taps: features to read.
        seed: of the stage.
        part: whose weights they are; other parts draw independently.
        snapshot: what a stage made of this network; taken instead of the config's file, which still decides
            the input's defaults.
        views: channels and pixels a side of the images that it is shown now, where they are not those of its
            own data: a teacher keeps the input of its own stage for life.
        device: "meta" builds shapes only and reads no file, for planning.
        plugins: whose code may be imported by dotted name.

    Raises:
        ConfigError: an argument is unknown or does not fit the model.
        PluginError: there is no such model.
        CheckpointError: the weights cannot be read or do not fit.
        TapError: a tap does not exist.
    """
    origin = origin_of(student.model, plugins)
    indices, logits = class_map(student, info.class_names, info.classes)
    channels = _channels(student, origin, info)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device == "meta" else "cpu"):
        # not torch.manual_seed: it would reseed every accelerator's generator as well
        torch.default_generator.manual_seed(seed_of("init", seed, part))
        shown = views or (info.channels, size)
        seen = _input(student, origin, info, size, channels, shown)
        model = _make(origin, student, logits, seen)
        _change(
            Network(model, seen, own_taps=student.taps), student, seed, check=device != "meta",
            fresh=lambda name: build_network(
                student.model_copy(update={"branches": None, "weights": None}), info, size, seed=seed,
                part=name if part == "student" else f"{part}/{name}", views=views, device=device, plugins=plugins,
            ),
        )  # fmt: skip
        if device != "meta":
            _load(model, student, snapshot)
        network = Network(model, seen, taps, own_taps=student.taps, class_map=indices, per_pixel=info.per_pixel)
        check_taps(network)
    return network.to(device)


def own_input(student: StudentConfig, plugins: PluginsConfig | None = None) -> InputConfig:
    """What a network wants to see whatever data it is shown, so far as config and weights decide it.

    Plans write it into the stage: a library that changes what it says of its weights makes another stage.
    """
    return _own_input(student, origin_of(student.model, plugins))


def list_taps(
    student: StudentConfig, info: DatasetInfo, size: int, *, plugins: PluginsConfig | None = None
) -> list[TapRow]:
    """Every module that runs in a forward pass, and what a tap on it would read.

    Args:
        student: the model; its weights are not read.
        info: the data.
        size: pixels a side of the loader's images.
        plugins: whose code may be imported by dotted name.

    Raises:
        ConfigError, PluginError, ShapeError: the network cannot be built or run.
    """
    fresh = student.model_copy(update={"weights": None, "taps": None, "split_head": None, "branches": None})
    network = build_network(fresh, info, size, plugins=plugins)
    model = network.model
    names: dict[str, str] = {path: name for name, (path, _) in getattr(model, "taps", {}).items()}
    names |= {path: name for name, path in (student.taps or {}).items()}
    catches = [Catch(path, path) for path, _ in model.named_modules() if path]
    ran: list[str] = []
    for catch in catches:
        module = model.get_submodule(catch.path)
        module.register_forward_hook(catch)
        module.register_forward_hook(lambda *_, path=catch.path: ran.append(path))
    network.dry(size)
    return _rows(model, {catch.path: catch for catch in catches}, names, list(dict.fromkeys(ran)))


def _rows(model: nn.Module, catches: Mapping[str, Catch], names: Mapping[str, str], ran: Sequence[str]) -> list[TapRow]:
    rows, counted = [], set[int]()
    params = 0
    for path in ran:
        for parameter in model.get_submodule(path).parameters():
            if id(parameter) not in counted:
                counted.add(id(parameter))
                params += parameter.numel()
        problem, shape = catches[path].problem(DRY_IMAGES) or "", catches[path].shape
        forms = () if problem or shape is None else fitting(told_by(model, path), path, shape)
        rows.append(TapRow(path, names.get(path, ""), shape, params, problem, forms))
    return rows


def constructor_arguments(origin: Origin, student: StudentConfig, logits: int, seen: NetworkInput) -> dict[str, Any]:
    """What a model's constructor is called with: what the data says, and over it what the config does.

    Raises:
        ConfigError: the model has no such argument.
    """
    arguments = student.arguments
    classes_name = arguments.pop("classes_arg", origin.classes)
    check_arguments(origin, student.model, arguments)
    implied: dict[str, Any] = {classes_name: logits} if classes_name else {}
    if origin.channels:
        implied[origin.channels] = seen.channels
    if origin.size:
        implied[origin.size] = seen.size
    return {**implied, **arguments}


def _make(origin: Origin, student: StudentConfig, classes: int, seen: NetworkInput) -> nn.Module:
    try:
        return origin.make(**constructor_arguments(origin, student, classes, seen))
    except KDScaleError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        said = ", ".join(f"{k}={v!r}" for k, v in student.arguments.items())
        raise ConfigError(f"student: {student.model}({said}): {error}") from error


def _change(
    network: Network, student: StudentConfig, seed: int, *, fresh: Callable[[str], Network], check: bool
) -> None:
    """Give a new network, in place, the split head or the branches that its config has beyond the model."""
    if student.split_head is not None:
        with _told_of("split_head"):
            splice(network, student.split_head, check=check)
    if student.branches is not None:
        count, at, size = student.branches.count, student.branches.split_at, network.input.given_size
        with _told_of("branches"):
            branches = branch_out(network, count, at, fresh, size=size, seed=seed, answers=True, check=check)
        network.model.add_module("native_ensemble", branches)


@contextmanager
def _told_of(key: str) -> Iterator[None]:
    """Errors that name the student's key which they are about."""
    try:
        yield
    except TapError as error:  # no term asks for it
        raise ConfigError(f"student.{key}.split_at: {error}") from error
    except KDScaleError as error:
        raise type(error)(f"student.{key}.{error}") from error


def _load(model: nn.Module, student: StudentConfig, snapshot: Path | None) -> None:
    if snapshot is not None:
        load_weights(model, snapshot)
        return
    if student.weights is None:
        return
    tensors, notes = read_tensors(student.weights, student.weights_key)
    if student.weights_hash not in (None, tensors_hash(tensors)):
        raise CheckpointMismatch(
            f"{student.weights} has changed since the sweep was planned (hash {student.weights_hash}); plan it again"
        )
    loaded = fit_tensors(model, tensors, strict=student.strict, source=str(student.weights))
    for note in [*notes, *loaded.notes]:
        log.info("%s: %s", student.weights, note)


def _channels(student: StudentConfig, origin: Origin, info: DatasetInfo) -> int:
    """Channels that the model wants: as configured, as it must, as its weights were made with, as the data has."""
    if student.input.channels is not None:
        wanted = int(student.input.channels)
        if origin.fixed_channels not in (None, wanted):
            raise ConfigError(f"student.input.channels: {student.model} takes {origin.fixed_channels} channels only")
    else:
        with_file = origin.pretrained if student.weights is not None else None
        wanted = origin.fixed_channels or (len(with_file.mean) if with_file else info.channels)
    _check_channels(info.channels, wanted)
    return wanted


def _check_channels(given: int, wanted: int) -> None:
    if wanted != given and {wanted, given} != {1, 3}:
        raise ConfigError(f"student.input: cannot turn {given} channels into {wanted}")


def _input(
    student: StudentConfig, origin: Origin, info: DatasetInfo, size: int, channels: int, shown: tuple[int, int]
) -> NetworkInput:
    """The network's own size and normalisation; with a file, default to what such weights were published with."""
    own = _own_input(student, origin)
    wanted = own.size or _built_for(student, origin) or size
    mean = own.mean or _converted(info.mean, channels)
    std = own.std or _converted(info.std, channels)
    _check_channels(shown[0], channels)
    return NetworkInput(
        given=shown[0],
        given_size=shown[1],
        channels=channels,
        size=wanted,
        mean=_spread("mean", mean, channels),
        std=_spread("std", std, channels),
    )


def _own_input(student: StudentConfig, origin: Origin) -> InputConfig:
    """What the config says; for weights from a file, then what such weights were published with."""
    published, own = origin.pretrained, student.input
    if published is None or student.weights is None:
        return own
    size = own.size or _built_for(student, origin) or published.size
    mean, std = own.mean or list(published.mean), own.std or list(published.std)
    return own.model_copy(update={"size": size, "mean": mean, "std": std})


def _built_for(student: StudentConfig, origin: Origin) -> int | None:
    return student.arguments.get("img_size") or origin.fixed_size  # timm's word


def _converted(statistic: Sequence[float], channels: int) -> list[float]:
    """The data's statistic for the model's channels; a grey image's std is that of fully correlated channels."""
    if len(statistic) == channels:
        return list(statistic)
    if channels == 3:
        return [statistic[0]] * 3
    return [sum(weight * value for weight, value in zip((0.299, 0.587, 0.114), statistic, strict=True))]


def _spread(name: str, values: Sequence[float], channels: int) -> list[float]:
    if len(values) not in (1, channels):
        raise ConfigError(f"student.input.{name} has {len(values)} values; the network takes {channels} channels")
    if name == "std" and min(values) <= 0:
        raise ConfigError("student.input.std must be above 0")
    return list(values) * channels if len(values) == 1 else list(values)
