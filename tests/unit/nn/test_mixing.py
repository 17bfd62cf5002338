from __future__ import annotations

from dataclasses import replace

import torch

from kdscale.api import Batch
from kdscale.nn.mixing import by_share

LABELS, PARTNERS = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
BATCH = Batch(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), LABELS, torch.arange(3), view=0)


def test_unmixed_samples_count_for_their_labels_alone() -> None:
    assert by_share(BATCH, lambda labels: labels.double()).tolist() == [0.0, 1.0, 2.0]


def test_mixed_samples_count_for_both_labels_by_their_share() -> None:
    mixed = replace(BATCH, labels_b=PARTNERS, lam=torch.tensor([1.0, 0.0, 0.5]))
    assert by_share(mixed, lambda labels: labels.float()).tolist() == [0.0, 3.0, 2.5]
