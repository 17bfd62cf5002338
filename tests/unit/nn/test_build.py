"""Networks from configs: initial weights, arguments, input, class order, foreign models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdscale.api import DatasetInfo
from kdscale.config.schema import PluginsConfig, StudentConfig
from kdscale.errors import CheckpointError, ConfigError, KDScaleError, ShapeError
from kdscale.nn.build import build_network, list_taps
from kdscale.nn.weights import file_weights_hash, weights_hash

GREY = DatasetInfo(4, 1, 28, 100, 20, (0.3,), (0.35,), ("ant", "bee", "cat", "dog"))
COLOUR = DatasetInfo(4, 3, 32, 100, 20, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), ("ant", "bee", "cat", "dog"))


def student(model: str = "resnet_cifar", **options: object) -> StudentConfig:
    options = {"depth": 8} | options if model == "resnet_cifar" else options
    return StudentConfig(model=model, **options)  # type: ignore[arg-type]


def images(info: DatasetInfo, size: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, info.channels, size, size), dtype=torch.uint8, generator=generator)


class TestInitialWeights:
    def test_depend_on_seed_and_part_alone(self) -> None:
        torch.manual_seed(5)
        first = weights_hash(build_network(student(), GREY, 28, seed=3).model)
        torch.manual_seed(6)
        assert weights_hash(build_network(student(), GREY, 28, seed=3).model) == first
        assert weights_hash(build_network(student(), GREY, 28, seed=4).model) != first
        assert weights_hash(build_network(student(), GREY, 28, seed=3, part="teacher").model) != first

    def test_leave_the_global_generator_alone(self) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        build_network(student(), GREY, 28)
        assert torch.equal(torch.get_rng_state(), before)

    def test_do_not_depend_on_taps(self) -> None:
        plain = weights_hash(build_network(student(), GREY, 28).model)
        assert weights_hash(build_network(student(), GREY, 28, taps=["stage1", "stage2.pre"]).model) == plain

    def test_are_the_bare_models_alone(self) -> None:
        network = build_network(student(), GREY, 28, taps=["stage1"])
        assert next(iter(network.model.state_dict())) == "stem.0.weight"
        assert all(name.startswith("model.") for name in network.state_dict())


class TestArguments:
    def test_an_unknown_one_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"student\.dept: .*did you mean depth\?"):
            build_network(student("resnet_cifar", dept=8), GREY, 28)

    def test_a_wrong_value_is_the_configs_fault(self) -> None:
        with pytest.raises(ConfigError, match=r"resnet_cifar\(depth=9\): depth must be 6n \+ 2"):
            build_network(student(depth=9), GREY, 28)

    def test_the_planner_builds_shapes_only(self) -> None:
        network = build_network(student(weights=Path("absent.pth")), GREY, 28, taps=["stage3", "pooled"], device="meta")
        assert all(p.is_meta for p in network.parameters())
        assert network.tap_shapes(28) == [(64, 7, 7), (64,)]

    def test_a_fixed_size_follows_the_input(self) -> None:
        network = build_network(student("plain_cnn", depth=2, input={"size": 16}), GREY, 28)
        assert network(images(GREY, 28)).logits.shape == (3, 4)


class TestInput:
    def test_normalises_by_the_datas_statistics(self) -> None:
        network, batch = build_network(student(), COLOUR, 32), images(COLOUR, 32)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (COLOUR.mean, COLOUR.std))
        torch.testing.assert_close(network.input(batch), (batch / 255 - mean) / std, rtol=1e-5, atol=1e-5)

    def test_shows_grey_images_as_colour(self) -> None:
        network, batch = (
            build_network(student(input={"channels": 3, "mean": [0.1, 0.2, 0.3]}), GREY, 28),
            images(GREY, 28),
        )
        mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
        torch.testing.assert_close(network.input(batch), (batch / 255 - mean) / 0.35, rtol=1e-5, atol=1e-5)
        assert network.input.seen(batch).shape == (3, 3, 28, 28)

    def test_shows_colour_images_as_grey(self) -> None:
        network, batch = (
            build_network(student(input={"channels": 1, "mean": [0.0], "std": [1.0]}), COLOUR, 32),
            images(COLOUR, 32),
        )
        red, green, blue = (batch[:, i].float() / 255 for i in range(3))
        torch.testing.assert_close(network.input(batch)[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue)

    def test_resizes_with_antialiasing(self) -> None:
        network = build_network(student(input={"size": 7, "mean": [0.0], "std": [1.0]}), GREY, 28)
        checks = (torch.arange(28)[:, None] + torch.arange(28)) % 2 * 255
        small = network.input(checks.to(torch.uint8).expand(2, 1, 28, 28))
        assert small.shape == (2, 1, 7, 7)
        assert (small - 0.5).abs().max() < 0.02, "without antialiasing a chequered board becomes black or white"

    def test_of_a_teacher_stays_that_of_its_own_data(self) -> None:
        own = build_network(student("plain_cnn", depth=2), COLOUR, 32).eval()
        elsewhere = build_network(student("plain_cnn", depth=2), COLOUR, 32, views=(1, 28)).eval()
        shown = images(GREY, 28)
        assert elsewhere.tap_shapes(28) == []
        grown = torch.nn.functional.interpolate(shown.float(), (32, 32), mode="bilinear", antialias=True)
        as_colour = (grown.expand(3, 3, 32, 32) / 255 - own.input.shift.new_tensor(COLOUR.mean).view(1, 3, 1, 1)) * (
            own.input.scale * 255
        )
        torch.testing.assert_close(elsewhere(shown).logits, own.model(as_colour), rtol=1e-4, atol=1e-4)

    def test_leaves_the_loaders_images_as_they_are(self) -> None:
        network, batch = build_network(student(), COLOUR, 32), images(COLOUR, 32)
        before = batch.clone()
        network.input(batch), network.input.seen(batch)
        assert torch.equal(batch, before)

    @pytest.mark.parametrize(
        ("wanted", "said"),
        [
            ({"mean": [0.1, 0.2]}, "mean has 2 values"),
            ({"std": [0.0]}, "above 0"),
        ],
    )
    def test_refuses_what_does_not_fit(self, wanted: dict[str, object], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            build_network(student(input=wanted), GREY, 28)

    def test_layouts_differ_by_rounding_only(self) -> None:
        network, batch = build_network(student(), COLOUR, 32).eval(), images(COLOUR, 32)
        contiguous = network.prepare(channels_last=False, device="cpu")(batch).logits
        layout = network.prepare(channels_last=True, device="cpu")
        assert layout.input(batch).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(layout(batch).logits, contiguous, rtol=1e-4, atol=1e-5)


class TestClassOrder:
    NAMES = ("dog", "elk", "cat", "bee", "ant")

    def test_logits_come_in_the_datas_order(self) -> None:
        plain = build_network(student("resnet_cifar", class_map=[0, 1, 2, 3], classes=5), GREY, 28).eval()
        named = build_network(student("resnet_cifar", class_names=list(self.NAMES)), GREY, 28).eval()
        batch = images(GREY, 28)
        five = plain.model(plain.input(batch))
        assert torch.equal(plain(batch).logits, five[:, :4])
        assert torch.equal(named(batch).logits, five[:, [4, 3, 2, 0]])

    def test_files_hold_one_a_line(self, tmp_path: Path) -> None:
        (tmp_path / "names.txt").write_text("\n".join(self.NAMES) + "\n")
        (tmp_path / "map.txt").write_text("4\n3\n2\n0\n")
        by_name = build_network(student(class_names=tmp_path / "names.txt"), GREY, 28)
        by_index = build_network(student(class_map=tmp_path / "map.txt", classes=5), GREY, 28)
        assert by_name.class_map is not None
        assert by_index.class_map is not None
        assert by_name.class_map.tolist() == by_index.class_map.tolist() == [4, 3, 2, 0]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"classes": 5}, "student.classes is 5 but the data has 4"),
            ({"class_names": ["ant", "bee", "cat", "eel"]}, "lacks 1 of the data's classes: dog"),
            ({"class_names": ["ant", "ant", "bee", "cat", "dog"]}, "twice"),
            ({"class_map": [0, 1, 2]}, "4 different indices"),
            ({"class_map": [0, 1, 2, 7]}, "goes from 0 to 7"),
        ],
    )
    def test_refuses_what_does_not_cover_the_data(self, options: dict[str, object], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            build_network(student(**options), GREY, 28)


class TestWeights:
    def test_come_from_the_file(self, tmp_path: Path) -> None:
        trained = build_network(student(), GREY, 28, seed=9).model
        save_file(trained.state_dict(), tmp_path / "w.safetensors")
        loaded = build_network(student(weights=tmp_path / "w.safetensors"), GREY, 28)
        assert weights_hash(loaded.model) == weights_hash(trained)

    def test_changed_since_planning_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        save_file(build_network(student(), GREY, 28).model.state_dict(), path)
        planned = student(weights=path, weights_hash=file_weights_hash(path))
        build_network(planned, GREY, 28)
        save_file(build_network(student(), GREY, 28, seed=1).model.state_dict(), path)
        with pytest.raises(CheckpointError, match="changed since the sweep was planned"):
            build_network(planned, GREY, 28)

    def test_a_snapshot_takes_the_files_place(self, tmp_path: Path) -> None:
        trained = build_network(student(), GREY, 28, seed=9).model
        save_file(trained.state_dict(), tmp_path / "snapshot.safetensors")
        config = student(weights=tmp_path / "gone.pth")
        loaded = build_network(config, GREY, 28, snapshot=tmp_path / "snapshot.safetensors")
        assert weights_hash(loaded.model) == weights_hash(trained)


USERS_MODULE = """
import torch
class TinyNet(torch.nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.body = torch.nn.Conv2d(1, width, 3)
        self.act = torch.nn.ReLU(inplace=True)
        self.head = torch.nn.Linear(width, num_classes)
    def forward(self, x):
        return self.head(self.act(self.body(x)).mean((2, 3)))
class Tuples(TinyNet):
    def forward(self, x):
        return super().forward(x), x
class Odd(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = torch.nn.Linear(784, c)
    def forward(self, x):
        return self.fc(x.flatten(1))
"""


@pytest.fixture
def allowed(tmp_path: Path) -> PluginsConfig:
    (tmp_path / "nets_of_a_user.py").write_text(USERS_MODULE)
    return PluginsConfig(path=[tmp_path], allow=["nets_of_a_user"])


class TestForeignModels:
    def test_a_users_class_is_called_by_its_own_names(self, allowed: PluginsConfig) -> None:
        config = student("nets_of_a_user:TinyNet", width=6, taps={"mid": "act"})
        network = build_network(config, GREY, 28, taps=["mid", "head"], plugins=allowed)
        assert network.tap_shapes(28) == [(6, 26, 26), (4,)]
        assert network.post_relu("mid")
        assert not network.post_relu("body")

    def test_classes_may_have_any_name(self, allowed: PluginsConfig) -> None:
        network = build_network(student("nets_of_a_user:Odd", classes_arg="c"), GREY, 28, plugins=allowed)
        assert network(images(GREY, 28)).logits.shape == (3, 4)

    def test_logits_must_be_a_tensor(self, allowed: PluginsConfig) -> None:
        network = build_network(student("nets_of_a_user:Tuples"), GREY, 28, plugins=allowed)
        with pytest.raises(ShapeError, match=r"logits \(B, C\), not tuple"):
            network.tap_shapes(28)

    def test_is_not_imported_unless_allowed(self, allowed: PluginsConfig) -> None:
        with pytest.raises(KDScaleError, match="allow"):
            build_network(student("nets_of_a_user:TinyNet"), GREY, 28, plugins=PluginsConfig(path=allowed.path))

    def test_torchvision_loads_on_a_cpu_build_of_torch(self) -> None:
        pytest.importorskip("numpy")
        config = student("torchvision:squeezenet1_1", taps={"fire": "features.3"})
        network = build_network(config, GREY, 64, taps=["fire"], device="meta")
        assert network.input.channels == 3
        assert network.input.size == 64, "untrained networks see the data as it is"
        assert network.tap_shapes(64) == [(128, 15, 15)]

    def test_published_weights_bring_their_own_input(self) -> None:
        config = student("torchvision:squeezenet1_1", weights=Path("imagenet.pth"))
        seen = build_network(config, COLOUR, 64, device="meta").input
        assert (seen.size, seen.mean) == (224, (0.485, 0.456, 0.406))

    def test_an_unknown_name_gives_near_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"did you mean .*resnet18"):
            build_network(student("torchvision:resnet81"), GREY, 28)

    def test_timm_by_name(self) -> None:
        pytest.importorskip("timm")
        config = student("timm:vit_tiny_patch16_224", depth=1)
        network = build_network(config, GREY, 28, taps=["blocks.0"], device="meta")
        assert network.input.size == 224, "it takes no other size"
        assert network.input.channels == 1
        assert network.tap_shapes(28) == [(197, 192)]


class TestListTaps:
    def test_lists_what_runs_with_shapes_and_parameters(self) -> None:
        rows = list_taps(student(), GREY, 28)
        by_name = {row.name: row for row in rows if row.name}
        assert by_name["stage2"].shape == (32, 14, 14)
        assert by_name["stage2"].path == "stage2"
        assert not by_name["stage2.pre"].usable
        assert rows[-1].params == sum(p.numel() for p in build_network(student(), GREY, 28).parameters()) == 77_364
        assert [r.params for r in rows] == sorted(r.params for r in rows)

    @pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
    def test_says_in_which_forms_a_transformer_can_be_read(self) -> None:
        config = student("timm:vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, img_size=28, patch_size=7)
        rows = {row.path: row for row in list_taps(config, GREY, 28)}
        assert (rows["blocks.0"].shape, rows["blocks.0"].forms) == ((17, 24), ("map", "pooled", "cls", "tokens"))
        assert rows["patch_embed"].forms == ("map", "pooled", "tokens"), "the class token is added behind it"
        assert rows["fc_norm"].forms == ("pooled",)

    def test_says_what_cannot_be_a_tap(self) -> None:
        rows = {row.path: row for row in list_taps(student(), GREY, 28)}
        assert "in place" in rows["stem.1"].usable
        assert not rows["stem.2"].usable
