"""The frozen-backbone probe: the best linear head on frozen features, against which every adapter is held."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from masm.data.augment import to_float
from masm.data.frames import Frames
from masm.data.stored import Images, decoded, in_order
from masm.detector import Detector
from masm.metrics import area_under_curve

INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""L2 strengths that are tried; the validation frames choose."""


def fit_probe(detector: Detector, frames: Frames, validation: Frames, batch_size: int) -> float:
    """Give the detector the logistic regression that is best on validation as its head, in place.

    A convex problem solved to its optimum, so that the probe is as good as a linear head can be.

    Returns:
        The validation AUC of the chosen head.
    """
    scaler = StandardScaler()
    features = scaler.fit_transform(embed(detector, frames.images, batch_size))
    held_out = scaler.transform(embed(detector, validation.images, batch_size))
    best_auc, best = -np.inf, None
    for strength in INVERSE_PENALTIES:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        model.fit(features, frames.labels)
        auc = area_under_curve(validation.labels, model.decision_function(held_out))
        if auc > best_auc:
            best_auc, best = auc, model
    assert best is not None  # the first AUC is above minus infinity
    weight = best.coef_[0] / scaler.scale_
    bias = float(best.intercept_[0] - weight @ scaler.mean_)
    with torch.no_grad():
        detector.head.weight.copy_(torch.from_numpy(weight)[None])
        detector.head.bias.fill_(bias)
    return best_auc


@torch.inference_mode()
def embed(detector: Detector, images: Images, batch_size: int) -> np.ndarray:
    """Features (n, D) float64 of images, in their order."""
    detector.eval()
    parts = [
        detector.embed(to_float(pixels.to(detector.device))).double().cpu()
        for pixels in decoded(images, in_order(len(images), batch_size))
    ]
    return torch.cat(parts).numpy()
