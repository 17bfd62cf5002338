"""A network that was imported and does not train: does it speak the data's language?

Nets from elsewhere bring their own order of classes; read in the data's order such a net looks like
chance, without an error anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdscale import ranks
from kdscale.data.loader import EvalLoader
from kdscale.errors import StageError
from kdscale.nn.class_order import permuted_classes
from kdscale.train.build import Parts

__all__ = ["check_class_order"]

SAMPLES = 512


def check_class_order(parts: Parts, where: str) -> None:
    """Compare an imported network's answers with the labels of a few held-out rows; called by all ranks.

    One that answers for each pixel is taken at its word.

    Args:
        parts: of the stage.
        where: key path of the network in the config.

    Raises:
        StageError: the network knows the classes, in another order.
    """
    if parts.store.info.per_pixel:
        return
    logits, labels = _answers(parts)
    order = permuted_classes(logits, labels)
    if order.permuted:
        raise StageError(order.advice(where))


@torch.no_grad()
def _answers(parts: Parts) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of the first held-out rows, over all ranks."""
    data, rank, world = parts.train_loader.data, ranks.rank(), ranks.world()
    loader = EvalLoader(
        parts.store, data, "val" if data.val_fraction else "test", batch_size=64, rank=rank, world=world
    )
    logits, labels, seen = [], [], 0
    with parts.exported_weights(step=0):
        network = parts.network.eval()
        for batch in loader:
            logits.append(network(batch.to(parts.device).images).logits.float().cpu())
            labels.append(batch.labels)
            seen += len(batch.rows) * world
            if seen >= SAMPLES:
                break
    everyone = ranks.gather_objects((torch.cat(logits), torch.cat(labels)))
    return torch.cat([part[0] for part in everyone]), torch.cat([part[1] for part in everyone])
