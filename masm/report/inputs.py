"""What the report shows, as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from masm.costs import Costs
from masm.decisions import Decision, Level
from masm.delong import Difference
from masm.plots.search import Outcome
from masm.plots.subspaces import MaskState
from masm.report.mistakes import Mistake
from masm.robustness import Robustness
from masm.scorecard import Estimate, Scorecard
from masm.separability import Separability

METHODS = {
    "masm": "MASM, “Deepfake Detection with Multi-Artifact Subspace Fine-Tuning and Selective Layer Masking” (arXiv "
    "2601.01041, renamed FMSD in its third version). The split into subspaces, the layer mask and the two constraints "
    "are stated in its abstracts; their formulas are this project's reconstruction, not the authors' code.",
    "effort": "The architecture of Effort (ICML 2025, arXiv 2411.15633): the smallest singular triplet of q, k, v and "
    "proj learns, without penalties.",
    "lora": "LoRA (arXiv 2106.09685), by peft.",
    "layernorm": "Scale and shift of the normalisation layers under a head on the L2-normalised feature, as in GenD "
    "(WACV 2026).",
    "full": "Fine-tuning of all weights.",
    "probe": "A linear head on the frozen backbone.",
}
"""What the model card says of each method of adaptation."""


@dataclass(frozen=True)
class DatasetCard:
    """What the model card says of one dataset; `note` warns, say that its classes differ in source."""

    name: str
    role: str
    people: int
    videos: int
    frames: int
    digest: str
    licence: str
    note: str = ""


@dataclass(frozen=True)
class ReportInputs:
    """All that the report shows.

    Attributes:
        model: the headline, for instance "masm on starter".
        method: how the backbone was adapted, a key of METHODS.
        verdict: one sentence below it.
        scores: Scores of the test datasets by model name, the adapted model first.
        decisions: what each of the models decides by.
        scorecards: the scorecards of the same models.
        differences: adapted model minus the second one, mean video AUC, by dataset name and "macro".
        delong: the same by DeLong's test, by dataset name, where no person has several videos.
        robustness: of the adapted model; without rows where no frame was distorted.
        slices: rows of `masm.slices.slice_table` of the adapted model, for all columns that were asked for.
        mistakes: the adapted model's hardest errors, as pictures; None where none were asked for.
        history: columns epoch, loss (training), val_auc, and val_auc.DATASET where there are several; the epoch of
            the highest val_auc was kept. NaN is undefined.
        masks: the layer mask's states in order of their steps, the first at step 0; none without a mask.
        steps: number of training steps.
        shares: columns dataset, method, subspace, share and frames; empty without subspaces.
        separability: of the adapted model's embeddings; without rows where none were asked for.
        search: what it tried, and what came of it.
        costs: of the stages before this one, and of the trials.
        datasets: every dataset that the model or its choice has seen, or that judges it.
        candidates: how many models these test datasets have judged so far, this one included.
        settings: nested settings, shown flat.
        versions: program or library -> version or revision.
    """

    model: str
    method: str
    verdict: str
    scores: Mapping[str, pd.DataFrame]
    decisions: Mapping[str, Mapping[Level, Decision]]
    scorecards: Mapping[str, Scorecard]
    differences: Mapping[str, Estimate]
    delong: Mapping[str, Difference]
    robustness: Robustness
    slices: pd.DataFrame
    mistakes: Sequence[Mistake] | None
    history: pd.DataFrame
    masks: Sequence[MaskState]
    steps: int
    shares: pd.DataFrame
    separability: Separability
    search: Outcome
    costs: Costs
    datasets: Sequence[DatasetCard]
    candidates: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
