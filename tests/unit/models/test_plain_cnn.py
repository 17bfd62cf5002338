"""TAKD's plain networks, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdscale.models.plain_cnn import BOOKS, PlainCnn


def by_hand(words: str, classes: int, size: int = 32) -> int:
    """Parameters of a list of layers as the authors' code builds it: biases everywhere, BN behind convolutions."""
    total, inward, flat = 0, 3, 0
    for word in [*words.split(), f"FC{classes}"]:
        if word == "P":
            size //= 2
        elif word.startswith("FC"):
            flat = flat or inward * size * size
            total, flat = total + (flat + 1) * int(word[2:]), int(word[2:])
        else:
            total, inward = total + (9 * inward + 1 + 2) * int(word), int(word)
    return total


@pytest.mark.parametrize(("book", "classes"), [("cifar10", 10), ("cifar100", 100)])
@pytest.mark.parametrize("depth", [2, 4, 6, 8, 10])
def test_has_the_parameters_of_the_authors_lists(book: str, classes: int, depth: int) -> None:
    with torch.device("meta"):
        model = PlainCnn(classes=classes, depth=depth, book=book)
    assert sum(p.numel() for p in model.parameters()) == by_hand(BOOKS[book][depth], classes)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth


def test_takes_own_layers_and_sizes() -> None:
    model = PlainCnn(classes=5, channels=1, layers="4 P 6 6 P FC7", size=28)
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 5)
    assert model.head.in_features == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 3}, "2, 4, 6, 8, 10"),
        ({"book": "imagenet"}, "cifar10, cifar100"),
        ({"layers": "4 Q"}, "Q does not fit"),
        ({"layers": "P 4"}, "P does not fit"),
        ({"layers": "4 FC3 4"}, "4 does not fit"),
        ({"layers": "4 P 4 P 4 P 4 P", "size": 8}, "to nothing"),
    ],
)
def test_refuses_what_is_no_such_network(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PlainCnn(classes=10, **arguments)  # type: ignore[arg-type]
