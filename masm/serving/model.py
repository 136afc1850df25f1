"""The MLflow model: images and videos in, scores and verdicts out.

MLflow runs this file by its path, when a model is logged and when one is loaded; in a process that has not
imported masm before, the masm that it imports is the one that the model carries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from masm.data.images import IMAGE_SUFFIXES, ImageError
from masm.serving.many import Result, Task, image_task, score_many, video_task
from masm.serving.media import from_base64, media_file, read_file
from masm.serving.packaging import INPUTS, OUTPUTS
from masm.serving.results import answer
from masm.serving.scorer import FoundFace, Scorer
from masm.settings import media_root


class DetectorModel(PythonModel):
    """A detector behind MLflow's interface; one bad image does not fail the others."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the detector, and the face detector that its crop profile names."""
        weights = context.artifacts.get("face_detector")
        self.scorer = Scorer(Path(context.artifacts["detector"]), Path(weights) if weights else None)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Score images and videos.

        Args:
            context: not used; `load_context` has seen it.
            model_input: in each row one of these columns. `image`: a file's bytes, or their base64, or pixels as
                array or nested lists (H, W, 3) from 0 to 255 in RGB. `video`: a file's bytes, or their base64.
                `path`: a file below the folder that MASM_MEDIA_ROOT names in this process's environment; without
                it no path is taken. For a detector of drawn faces (crop profile "given") the whole image is the
                face's crop.
            params: `shares`: whether the faces and frames get the shares of the artifact subspaces.

        Returns:
            One row per row: `score` (sigmoid of the logit, in [0, 1], high says fake), `probability` (the calibrated
            one), `verdict` ("fake" or "real"), those of the largest face or of the whole video; `outcome` ("ok",
            "no face", or why it cannot be used); `faces` of an image, the largest first, and `frames` of a video,
            as dictionaries of the fields of `masm.serving.results`. What does not apply is None.

        Raises:
            MlflowException: there is none of the columns.
        """
        tasks = [self._task(row) for row in _rows(model_input)]
        results = score_many(self.scorer, tasks, bool((params or {}).get("shares")))
        return pd.DataFrame([_row(result) for result in results], columns=list(OUTPUTS), dtype=object)

    def _task(self, row: Mapping[str, Any]) -> Task:
        given = {name: row[name] for name in INPUTS if name in row and not _is_missing(row[name])}
        if len(given) != 1:
            return self._refused(f"each row has one of {', '.join(INPUTS)}: this one has {len(given)}")
        name, value = given.popitem()
        if name == "path":
            return self._task_of_file(value)
        if name == "video":
            return video_task(self.scorer, lambda: self.scorer.find_in_video(_file_bytes(value)))
        return image_task(self.scorer, lambda: self.scorer.find_in_image(_image(value)))

    def _task_of_file(self, text: str) -> Task:
        try:
            path = media_file(text, media_root())
        except ImageError as error:
            return self._refused(str(error))
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return image_task(self.scorer, lambda: self.scorer.find_in_image(read_file(path)))
        return video_task(self.scorer, lambda: self.scorer.find_in_video(path))

    def _refused(self, outcome: str) -> Task:
        def find() -> list[FoundFace]:
            raise ImageError(outcome)

        return image_task(self.scorer, find)


def _rows(model_input: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows; what MLflow made one of, lists of texts under a column's name, are as many again."""
    if not set(INPUTS) & set(model_input.columns):
        raise MlflowException.invalid_parameter_value(
            f"none of the columns {', '.join(INPUTS)} is there: send for instance "
            '{"dataframe_records": [{"image": "BASE64"}]}'
        )
    for values in model_input.to_dict("records"):
        row = {str(name): value for name, value in values.items()}
        lists = {name: value for name, value in row.items() if isinstance(value, list) and _are_texts(value)}
        if not lists:
            yield row
        for name, texts in lists.items():
            yield from ({name: text} for text in texts)


def _are_texts(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _image(value: Any) -> bytes | np.ndarray | list[Any]:
    """A file's bytes, or what should be pixels."""
    return value if isinstance(value, list | np.ndarray) else _file_bytes(value)


def _file_bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytes | bytearray) else from_base64(value)


def _row(result: Result) -> dict[str, Any]:
    return {"faces": None, "frames": None} | answer(result)


mlflow.models.set_model(DetectorModel())
