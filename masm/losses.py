"""What training minimises besides the adapters' own penalties.

Losses over pairs take the distances between the L2-normalised features of a batch and a group for each of its samples:
0 is real, every other number a kind of fake. A batch that holds nothing that a loss could compare gives an exact 0
that still has a graph. The distances are in float64: from a product of matrices in float32 those of nearly equal
features would be wrong by 3e-4, and beside a backbone's step the difference in time is nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 2.0
"""t of the uniformity loss, as Wang & Isola have it."""


@dataclass(frozen=True)
class LossSettings:
    """The losses beside the classification loss; what is off costs nothing.

    Attributes:
        triplet: "none", or the kind of triplet loss, see `triplet_loss`.
        labels: which fakes are alike to the losses over pairs: those of the same "class" (all), "method" or
            "dataset". Reals are always alike: to tell their datasets apart would be to learn the source (ours).
        triplet_weight, alignment_weight, uniformity_weight: of the losses over pairs.
        margin: of the triplet losses, on the unit sphere; soft_margin has none.
        attribution: "none", or what an auxiliary head tells fakes apart by: "method" or "dataset".
        attribution_weight: of its loss.
    """

    triplet: str = "none"
    labels: str = "class"
    triplet_weight: float = 0.0
    margin: float = 0.0
    alignment_weight: float = 0.0
    uniformity_weight: float = 0.0
    attribution: str = "none"
    attribution_weight: float = 0.0

    @property
    def over_pairs(self) -> bool:
        """Whether any loss compares the samples of a batch."""
        return bool(
            self.alignment_weight or self.uniformity_weight or (self.triplet != "none" and self.triplet_weight)
        )


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (B,) for labels (B,), 1 for fake; computed in float32."""
    return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())


def attribution_loss(logits: Tensor, groups: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, C) for groups (B,) int64 (arXiv 2508.19730); computed in float32."""
    return functional.cross_entropy(logits.float(), groups)


def metric_loss(features: Tensor, groups: Tensor, settings: LossSettings) -> Tensor:
    """The weighted sum, in float32, of the losses over the pairs of a batch.

    Args:
        features: (B, D) of any length and floating type, B at least 2.
        groups: (B,) int64, 0 for real.
        settings: which losses, and their weights.
    """
    apart = distances(features)
    total = apart.new_zeros(())
    if settings.triplet != "none" and settings.triplet_weight:
        total = total + settings.triplet_weight * triplet_loss(settings.triplet, apart, groups, settings.margin)
    if settings.alignment_weight:
        total = total + settings.alignment_weight * alignment(apart, groups)
    if settings.uniformity_weight:
        total = total + settings.uniformity_weight * uniformity(apart)
    return total.float()


def distances(features: Tensor) -> Tensor:
    """Euclidean distances (B, B) float64 between L2-normalised features (B, D), each with gradient 0 where it is 0."""
    unit = functional.normalize(features.double(), dim=-1)
    return torch.cdist(unit, unit, compute_mode="use_mm_for_euclid_dist")


def triplet_loss(kind: str, apart: Tensor, groups: Tensor, margin: float) -> Tensor:
    """The mean over some of the triplets: an anchor a, a positive p of its group, a negative n of another one.

    Args:
        kind: "batch_all", "batch_hard" and "soft_margin" (Hermans et al. 2017, arXiv 1703.07737), "semi_hard"
            (Schroff et al. 2015, arXiv 1503.03832), or "real_anchored": batch-all with real anchors alone, so that
            the positives are real and the negatives fake, and no fakes are drawn together (ours).
        apart: (B, B) distances.
        groups: (B,) int64, 0 for real.
        margin: m.
    """
    same = groups[:, None] == groups
    positives, negatives = same.clone().fill_diagonal_(False), ~same
    if kind == "real_anchored":
        positives = positives & (groups == 0)[:, None]
    if kind in ("batch_all", "real_anchored"):
        return _batch_all(apart, positives, negatives, margin)
    if kind == "semi_hard":
        return _semi_hard(apart, positives, negatives, margin)
    hardest = _hardest(apart, positives, negatives)
    return _mean(functional.softplus(hardest) if kind == "soft_margin" else functional.relu(hardest + margin))


def alignment(apart: Tensor, groups: Tensor) -> Tensor:
    """Mean squared distance between two of one group (Wang & Isola 2020, arXiv 2005.10242, with alpha = 2)."""
    same = (groups[:, None] == groups).fill_diagonal_(False)
    return _mean(apart[same].square())


def uniformity(apart: Tensor) -> Tensor:
    """Logarithm of the mean of exp(-t d^2) over all pairs (Wang & Isola 2020, arXiv 2005.10242)."""
    others = ~torch.eye(len(apart), dtype=torch.bool, device=apart.device)
    return torch.exp(-TEMPERATURE * apart[others].square()).mean().log()


def _batch_all(apart: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Mean of d_ap - d_an + m over the triplets where it is above 0.

    The triplets are never held: along an anchor's negatives, nearest first, those that count for a positive come
    before d_ap + m, and running sums give their total. So it takes O(B^2 log B) operations and O(B^2) numbers (ours).
    """
    nearest_first = apart.masked_fill(~negatives, math.inf).sort(dim=1).values
    running = functional.pad(nearest_first.cumsum(dim=1), (1, 0))
    reach = apart + margin
    counts = torch.searchsorted(nearest_first.detach(), reach.detach())
    hinges = counts * reach - running.gather(1, counts)
    return hinges[positives].sum() / counts[positives].sum().clamp(min=1)


def _semi_hard(apart: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Mean of d_ap - d_an + m over positives whose nearest negative n beyond them is within the margin."""
    nearest_first = functional.pad(apart.masked_fill(~negatives, math.inf).sort(dim=1).values, (0, 1), value=math.inf)
    beyond = torch.searchsorted(nearest_first.detach(), apart.detach(), right=True)
    hinges = (apart - nearest_first.gather(1, beyond) + margin)[positives]
    return _mean(hinges[hinges > 0])


def _hardest(apart: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """d_ap - d_an (A,) of the farthest positive and the nearest negative of each anchor that has both."""
    anchors = positives.any(dim=1) & negatives.any(dim=1)
    farthest = apart.masked_fill(~positives, -math.inf)[anchors].amax(dim=1)
    nearest = apart.masked_fill(~negatives, math.inf)[anchors].amin(dim=1)
    return farthest - nearest


def _mean(values: Tensor) -> Tensor:
    """The mean of values (N,); 0, with a graph, where there are none."""
    return values.sum() / max(1, len(values))
