"""The stage `evaluate` on a small workspace: what its files hold, and what a dataset of two sources does to them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dvc_render.vega import VegaRenderer

from masm.settings import Settings, load_settings
from pipelines import evaluate
from tests.pipeline.workspace import edit
from tests.serving.workspace import ROOT, TESTS, make_workspace, own_address, save, tiny_detector, use_findings

KINDS = ["contrast", "blur"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """As the stages before `evaluate` leave it, with two models on noise."""
    folder = tmp_path_factory.mktemp("evaluated")
    with own_address():
        root = make_workspace(folder / "workspace", folder / "mlflow.db").root
        save(tiny_detector(1), root / "models" / "probe")
        for seen in ("train/swap", "validate/selfblend"):  # the model card counts their rows
            shutil.copytree(root / "data" / "test" / TESTS[0], root / "data" / seen)
        training = json.loads((root / "models" / "train.json").read_text())
        mask = [{"step": 0, "free": {"blocks.0.attn.q": [True, False]}}]
        (root / "models" / "train.json").write_text(json.dumps({**training, "mask_history": mask, "steps": 9}))
        _write_search(root / "search")
        edit(
            root / "params.yaml",
            {
                "evaluate.robustness": {"kinds": KINDS, "frames": 8},
                "evaluate.slices": ["face_size", "family"],
                "evaluate.embedding_frames": 8,
                "evaluate.share_frames": 2,
                "evaluate.thumbnails": 2,
                "licences": {"upsample": "CC BY 4.0"},
            },
        )
        yield load_settings(root / "params.yaml")


def _write_search(folder: Path) -> None:
    """Two trials of two epochs."""
    point = {"rank": [8, 16], "subspaces": 2, "mask_threshold": 0.1, "lambda_orth": 0.01, "lambda_spec": [0.01, 0.1]}
    trials = {"trial": [0, 1], "state": "COMPLETE", "epochs": 2, "score": [0.5, 0.6], **point, "seconds": 1.0}
    epochs = {"trial": [0, 0, 1, 1], "epoch": [1, 2, 1, 2], "score": [0.5, 0.5, 0.4, 0.6]}
    for name, table in (("trials", trials), ("epochs", epochs)):
        pd.DataFrame(table).to_csv(folder / f"{name}.csv", index=False)
    best = json.loads((folder / "best.json").read_text())
    (folder / "best.json").write_text(json.dumps({**best, "trial": 1}))


def run(settings: Settings) -> dict[str, Any]:
    evaluate.main(settings)
    text = (settings.root / "reports" / "metrics.json").read_text()
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_figures_curves_and_report_are_there(settings: Settings) -> None:
    metrics, reports = run(settings), settings.root / "reports"
    for model in ("adapted", "probe"):
        for level in ("frame", "video"):
            for figure in ("auc", "equal_error_rate", "calibration_error", "tpr_at_fpr_0.01"):
                mean = sum(metrics[f"{model}.{name}.{level}_{figure}"] for name in TESTS) / 2
                assert metrics[f"{model}.macro.{level}_{figure}"] == pytest.approx(mean)
    gain = metrics["adapted.macro.video_auc"] - metrics["probe.macro.video_auc"]
    assert metrics["gain.video_auc"] == pytest.approx(gain)
    assert 0 < metrics["gain.upsample.delong_p"] <= 1  # each person of this workspace has one video
    rungs = [f"{name}.robustness.{kind}.{level}" for name in TESTS for kind in KINDS for level in range(1, 6)]
    ladder = [metrics[f"adapted.{rung}"] for rung in rungs]
    assert metrics["adapted.macro.robustness_area"] == pytest.approx(sum(ladder) / len(ladder))
    assert math.isfinite(metrics["adapted.macro.robustness_drop"])
    columns = {
        "roc": ("fpr", "tpr"),
        "det": ("fpr_deviate", "fnr_deviate"),
        "reliability": ("probability", "fakes"),
        "robustness": ("level", "video_auc"),
    }
    for name, (x, y) in columns.items():
        points = pd.read_csv(reports / f"{name}.csv")
        assert set(points["dataset"]) == set(TESTS)
        drawn = VegaRenderer(
            points.assign(rev="workspace").to_dict("records"), name, template="curves", x=x, y=y,
            template_dir=str(ROOT / ".dvc" / "plots"),
        )  # fmt: skip
        shown = drawn.get_filled_template()["data"]["values"]
        assert {row["curve"] for row in shown} == set(points["curve"])
    html = (reports / "report.html").read_text()
    assert "1: 40 to 45.75" in html  # the first quarter of the face sizes
    assert "data:image/jpeg;base64," in html
    assert "CC BY 4.0" in html
    assert "drawn here, of nobody" in html
    assert not [path.name for path in reports.iterdir() if "partial" in path.name]


def test_a_dataset_of_two_sources_enters_no_mean(settings: Settings) -> None:
    use_findings(settings.root, {"denoise": "quality of the JPEG files"})
    metrics = run(settings)
    for figure in ("adapted.{}.video_auc", "adapted.{}.frame_calibration_error", "probe.{}.video_equal_error_rate"):
        assert metrics[figure.format("macro")] == metrics[figure.format("upsample")]
    assert metrics["gain.video_auc"] == metrics["gain.upsample.video_auc"]
    ladder = [metrics[f"adapted.upsample.robustness.{kind}.{level}"] for kind in KINDS for level in range(1, 6)]
    assert metrics["adapted.macro.robustness_area"] == pytest.approx(sum(ladder) / len(ladder))
    html = (settings.root / "reports" / "report.html").read_text()
    assert "not in the mean: two sources" in html
    assert "quality of the JPEG files" in html


def test_where_no_dataset_can_decide_the_means_are_undefined(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    use_findings(settings.root, dict.fromkeys(TESTS, "quality of the JPEG files"))
    metrics = run(settings)
    assert not any(name.startswith(("adapted.macro.", "probe.macro.", "gain.video_auc")) for name in metrics)
    assert "adapted.upsample.video_auc" in metrics
    assert "Mean video AUC on unseen test datasets is undefined" in (settings.root / "reports/report.html").read_text()
    assert "undefined" in capsys.readouterr().err
