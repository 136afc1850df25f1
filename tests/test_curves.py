from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from masm.curves import CURVE_POINTS, det_points, reliability_points, roc_points
from masm.evaluation import evaluate
from tests.test_evaluation import DECISIONS, make_scores


def test_curve_points_are_few_complete_and_hold_the_area() -> None:
    scores = make_scores(people=200, photographs=3)
    points = roc_points({"adapted": scores, "probe": scores}, level="frame")
    assert list(points.columns) == ["dataset", "model", "fpr", "tpr"]
    for _, curve in points.groupby("model"):
        assert len(curve) <= CURVE_POINTS
        assert tuple(curve.iloc[0][["fpr", "tpr"]]) == (0, 0)
        assert tuple(curve.iloc[-1][["fpr", "tpr"]]) == (1, 1)
        area = np.trapezoid(curve["tpr"], curve["fpr"])
        assert area == pytest.approx(roc_auc_score(scores["label"], scores["score"]), abs=0.01)
    one_class = scores[scores["label"] == 0]
    assert roc_points({"adapted": one_class}).empty
    assert det_points(roc_points({"adapted": one_class})).empty


def test_normal_scores_are_a_straight_line_of_errors() -> None:
    """Two normals of one width, 1.5 apart: the deviates of both error rates add up to -1.5."""
    spread = norm.ppf((np.arange(2000) + 0.5) / 2000)
    scores = pd.DataFrame({"label": np.repeat([0, 1], 2000), "score": np.concatenate([spread, spread + 1.5])})
    scores["method"] = np.where(scores["label"] == 1, "swap", "real")
    facts = {"dataset": "a", "frame_index": 0, "identity": "", "outcome": "ok", "distortion": "none", "level": 0}
    points = det_points(roc_points({"model": scores.assign(video_id=[*range(2000)] * 2, **facts)}))
    inner = points[points["fpr"].between(0.01, 0.99) & points["fnr"].between(0.01, 0.99)]
    assert len(inner) > 20
    np.testing.assert_allclose(inner["fpr_deviate"] + inner["fnr_deviate"], -1.5, atol=0.05)
    np.testing.assert_allclose(norm.cdf(points["fnr_deviate"]), points["fnr"], atol=1e-12)


def test_reliability_points_hold_the_calibration_errors() -> None:
    scores = pd.concat([make_scores("a"), make_scores("b", seed=3)])
    points = reliability_points({"adapted": scores}, {"adapted": DECISIONS})
    flat = evaluate(scores, DECISIONS, draws=100).metrics()
    seen = 0
    for (dataset, level, calibrated), rows in points.groupby(["dataset", "level", "calibrated"]):
        error = np.average((rows["fakes"] - rows["probability"]).abs(), weights=rows["count"])
        key = "calibration_error" if calibrated else "score_calibration_error"
        assert flat[f"{dataset}.{level}_{key}"] == pytest.approx(error, abs=1e-12)
        seen += 1
    assert seen == 8
    assert reliability_points({"adapted": scores[scores["label"] == 1]}, {"adapted": DECISIONS}).empty
