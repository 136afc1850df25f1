"""What training minimises besides the adapters' own penalties."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (B,) for labels (B,), 1 for fake; computed in float32."""
    return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())
