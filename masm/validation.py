"""What training knows of the validation frames."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from masm.data.augment import to_float
from masm.data.frames import Frames
from masm.data.stored import Images, decoded, in_order
from masm.detector import Detector
from masm.metrics import area_under_curve


@torch.inference_mode()
def predict(detector: Detector, images: Images, batch_size: int) -> np.ndarray:
    """Logits (n,) float64 of images, in their order."""
    detector.eval()
    logits = [
        detector(to_float(pixels.to(detector.device))).double().cpu()
        for pixels in decoded(images, in_order(len(images), batch_size))
    ]
    return torch.cat(logits).numpy()


def validation_figures(frames: Frames, logits: np.ndarray) -> dict[str, float]:
    """`val_auc`, by which the checkpoint is chosen, and `val_auc.DATASET` of each dataset where there are several.

    It is the mean of the datasets' AUCs that are defined; where no dataset has both classes (their own are NaN), the
    AUC over all frames. A mean over datasets does not ask their scores to lie on one scale.

    Args:
        frames: of validation, both classes among them.
        logits: (n,).
    """
    areas = {
        frames.dataset_names[number]: area_under_curve(frames.labels[own], logits[own])
        for number in np.unique(frames.datasets).tolist()
        for own in [frames.datasets == number]
    }
    defined = [area for area in areas.values() if math.isfinite(area)]
    mean = float(np.mean(defined)) if defined else area_under_curve(frames.labels, logits)
    several = {f"val_auc.{name}": area for name, area in areas.items()} if len(areas) > 1 else {}
    return {"val_auc": mean, **several}


def defined(line: Mapping[str, float]) -> dict[str, float | None]:
    """Figures, as a line of the history, for JSON, which has no NaN: null is an AUC of one class alone."""
    return {name: value if math.isfinite(value) else None for name, value in line.items()}
