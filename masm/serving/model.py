"""The MLflow model: encoded images in, scores and verdicts out.

MLflow runs this file by its path, when a model is logged and when one is loaded; in a process that has not
imported masm before, the masm that it imports is the one that the model carries.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from scipy.special import expit

from masm.data.faces import CropProfile, FaceCropper, find_face
from masm.data.images import ImageError, decode_image
from masm.decisions import read_decisions
from masm.detector import Detector

BATCH_SIZE = 32
FIGURES = ["score", "probability", "verdict"]


class DetectorModel(PythonModel):
    """A detector behind MLflow's interface; one bad image does not fail the others."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the merged detector, and the face detector that its crop profile names."""
        self.detector = Detector.load(Path(context.artifacts["detector"]), merged=True).eval()
        card = self.detector.card
        self.decision = read_decisions(card)["frame"]
        weights = context.artifacts.get("face_detector")
        self.cropper = FaceCropper(CropProfile(**card["crop"]), Path(weights) if weights else None)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Score images.

        Args:
            context: not used; `load_context` has seen it.
            model_input: column `image`: base64 of an encoded photograph, of which the largest face is scored.
                For a detector of drawn faces (crop profile "given") the whole image is the face's crop.
            params: not used.

        Returns:
            One row per image: `score` (sigmoid of the logit, in [0, 1], high says fake), `probability` (the
            calibrated one), `verdict` ("fake" or "real") and `outcome` ("ok", "no face", or why the image
            cannot be used). The first three are None where the outcome is not "ok".
        """
        crops, outcomes = [], []
        for text in model_input["image"]:
            try:
                crops.append(self.crop_face(text))
                outcomes.append("ok")
            except ImageError as error:
                outcomes.append(str(error))
        result = pd.DataFrame({"outcome": outcomes}, dtype=object)
        result[FIGURES] = None
        result.loc[result["outcome"] == "ok", FIGURES] = self._figures(crops)
        return result[[*FIGURES, "outcome"]]

    def crop_face(self, text: str) -> np.ndarray:
        """The largest face of a base64-encoded image as (size, size, 3) uint8 RGB.

        Raises:
            ImageError: no image, or no face in it; the message is the outcome.
        """
        image = decode_image(_from_base64(text))
        face = find_face(image, self.cropper)
        if face is None:
            raise ImageError("no face")
        return self.cropper.cut(image, face)

    def _figures(self, crops: list[np.ndarray]) -> np.ndarray:
        """(n, 3) score, probability and verdict of crops."""
        scores = expit(self._logits(crops))
        verdicts = np.where(scores >= self.decision.threshold, "fake", "real")
        return np.stack([scores, self.decision.calibration.probability(scores), verdicts.astype(object)], axis=1)

    @torch.inference_mode()
    def _logits(self, crops: list[np.ndarray]) -> np.ndarray:
        logits = np.empty(len(crops))
        for start in range(0, len(crops), BATCH_SIZE):
            batch = torch.from_numpy(np.stack(crops[start : start + BATCH_SIZE])).permute(0, 3, 1, 2)
            logits[start : start + BATCH_SIZE] = self.detector(batch.float() / 255).numpy()
        return logits


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # the command base64 breaks lines
    except (AttributeError, ValueError):  # binascii.Error is a ValueError
        raise ImageError("not base64") from None


mlflow.models.set_model(DetectorModel())
