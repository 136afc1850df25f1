"""The singular value decomposition of a pretrained weight into a frozen part and artifact subspaces.

Stated in the abstract of MASM (arXiv 2601.01041): each pretrained weight is split by SVD into a frozen
semantic principal subspace and several learnable artifact subspaces. That these are the smallest
triplets, dealt out in groups, is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Triplets:
    """The R smallest singular triplets of a weight (m, n), largest first: U (m, R), s (R,), V (n, R) in float64."""

    U: Tensor
    s: Tensor
    V: Tensor


@dataclass(frozen=True)
class Split:
    """One weight W (m, n) as semantic + sum_k U_k diag(s_k) V_k^T, in float64 on the CPU.

    U (m, K r), s (K r) and V (n, K r) hold the K groups one after the other, each with its r triplets
    in descending order.
    """

    semantic: Tensor
    U: Tensor
    s: Tensor
    V: Tensor


def smallest_triplets(weight: Tensor, count: int) -> Triplets:
    """The `count` smallest singular triplets of `weight` (m, n), in float64 on the CPU.

    From the full decomposition: the eigenvectors of W^T W would be found in half the time, but the smallest
    triplets, which are the ones wanted, would lose half of their digits.
    """
    U, S, Vh = torch.linalg.svd(weight.detach().to("cpu", torch.float64), full_matrices=False)
    first = len(S) - count
    return Triplets(U[:, first:].contiguous(), S[first:].contiguous(), Vh[first:].T.contiguous())


def split(
    weight: Tensor,
    subspaces: int,
    rank: int,
    grouping: str,
    decompose: Callable[[Tensor, int], Triplets] = smallest_triplets,
) -> Split:
    """Split `weight` (m, n) into its semantic part and `subspaces` groups of `rank` smallest triplets.

    The semantic part is the weight less these triplets: summing up the large ones instead would lose
    precision. Needs subspaces x rank <= min(m, n) and a finite weight. `decompose` gives the triplets, from a
    cache for instance.
    """
    triplets = decompose(weight, subspaces * rank)
    order = artifact_order(len(triplets.s), subspaces, rank, grouping)
    U, s, V = triplets.U[:, order], triplets.s[order], triplets.V[:, order]
    exact = weight.detach().to("cpu", torch.float64, copy=True)
    return Split(exact.addmm_(U * s, V.T, alpha=-1), U, s, V)


def artifact_order(triplets: int, subspaces: int, rank: int, grouping: str) -> Tensor:
    """Indices (K r,) of the smallest of `triplets` descending singular triplets, group after group."""
    smallest = torch.arange(triplets - subspaces * rank, triplets)
    if grouping == "contiguous":
        return smallest
    return smallest.reshape(rank, subspaces).T.flatten()
