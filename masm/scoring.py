"""From images to scores: every frame of the face tables once, in constant memory, nothing dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from masm.data.augment import to_float
from masm.data.stored import decoded, in_order, stored_images
from masm.data.table import read_failures, read_table
from masm.detector import Detector
from masm.settings import Settings

FACTS = ["dataset", "method", "video_id", "frame_index", "sample_id", "identity", "label"]
SCORE_COLUMNS = [*FACTS, "score", "outcome"]


def score(
    detector: Detector, settings: Settings, datasets: Sequence[str], progress: Callable[[int], None] = lambda n: None
) -> pd.DataFrame:
    """Score every frame of some datasets.

    Args:
        detector: the model; it is not changed.
        settings: where the face tables are, and the batch size.
        datasets: names of datasets.
        progress: called with the number of frames that were scored since.

    Returns:
        One row per frame, `score` the probability of fake before calibration. A video that could not be
        taken in is one row too, with its outcome and no score.
    """
    parts = [_score_table(detector, settings, name, progress) for name in datasets]
    return pd.concat(parts, ignore_index=True)[SCORE_COLUMNS]


def _score_table(
    detector: Detector, settings: Settings, dataset: str, progress: Callable[[int], None]
) -> pd.DataFrame:
    table = settings.table(dataset)
    rows, images = read_table(table, FACTS).to_pandas(), stored_images([table])
    scores = []
    for pixels in decoded(images, in_order(len(images), settings.evaluate.batch_size)):
        scores.append(probabilities(detector, pixels))
        progress(len(pixels))
    scored = rows.assign(score=np.concatenate(scores), outcome="ok")
    failed = read_failures(table).to_pandas()
    failed = failed[failed["frame_index"].isna()]  # of a video that gave faces, a lost frame is no row
    if failed.empty:
        return scored
    failed = failed.assign(frame_index=-1, score=np.nan)
    failed["sample_id"] = failed["dataset"] + "/" + failed["method"] + "/" + failed["video_id"]
    return pd.concat([scored, failed[SCORE_COLUMNS]], ignore_index=True)


def subspace_shares(detector: Detector, settings: Settings, datasets: Sequence[str], frames: int) -> pd.DataFrame:
    """Mean share of each artifact subspace in the logits of a dataset's methods (see `masm.adapters.shares`).

    Args:
        detector: not merged; it is not changed.
        settings: where the face tables are, and the batch size.
        datasets: names of datasets.
        frames: how many frames of each method are looked at, evenly spaced over the table.

    Returns:
        Columns dataset, method, subspace (from 1), share (signed, positive for fake) and frames.
    """
    rows = []
    for dataset in datasets:
        table = read_table(settings.table(dataset), ["method"]).to_pandas()
        for method, members in table.groupby("method", sort=False):
            chosen = members.index[np.linspace(0, len(members) - 1, min(frames, len(members))).round().astype(int)]
            shares = _mean_shares(detector, settings, dataset, chosen.to_numpy())
            rows += [(dataset, method, index + 1, share, len(chosen)) for index, share in enumerate(shares)]
    return pd.DataFrame(rows, columns=["dataset", "method", "subspace", "share", "frames"])


def _mean_shares(detector: Detector, settings: Settings, dataset: str, rows: np.ndarray) -> list[float]:
    """Mean shares (K,) over these rows of a dataset's table."""
    images = stored_images([settings.table(dataset)]).take(rows)
    detector.eval()
    parts = [
        detector.subspace_shares(to_float(pixels).to(detector.device))
        for pixels in decoded(images, in_order(len(images), settings.evaluate.batch_size))
    ]
    return torch.cat(parts).double().mean(dim=0).tolist()


@torch.inference_mode()
def probabilities(detector: Detector, images: torch.Tensor) -> np.ndarray:
    """Probability of fake (n,) float64 of crops (n, 3, S, S) uint8."""
    detector.eval()
    logits = detector(to_float(images.to(detector.device)))
    return torch.sigmoid(logits.double()).cpu().numpy()
