"""What pretraining brings: a linear probe on frozen features, pretrained against random, on forged photographs.

The photographs are those of London in ../shared, which no pretraining here has seen; swap and reenact are what the
probe learns from, the test datasets what judges it, people disjoint. Both backbones are of one architecture; the
random figures are means over several seeds. `--record` writes the figures to the card of the pretrained one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file

from masm.adapters import AdapterSettings
from masm.backbones import STARTER, Backbone, build_backbone
from masm.data.frames import load_frames
from masm.data.ingest import ingest
from masm.detector import Detector
from masm.evaluation import scored_frames, video_scores
from masm.metrics import area_under_curve
from masm.probe import fit_probe
from masm.scoring import score
from masm.settings import Settings, load_settings
from masm.workspace import YUNET, Source, create_workspace
from pipelines.pretrain import write_card
from tests.benchmarks.output import Figures, show
from tests.conftest import ROOT

LONDON = ROOT.parent / "shared" / "faces" / "london"
PROBE = AdapterSettings("probe", 0, 0, "interleaved", ("q",))


def make_tables(root: Path) -> Settings:
    """The face tables that the probe needs, in a workspace below `root`."""
    for name in ("params.yaml", "dvc.yaml", "runs/photographs.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    workspace = create_workspace(root, Source(LONDON, None, ROOT / YUNET))
    settings = load_settings(workspace / "params.yaml")
    for name in (*settings.with_role("train"), *settings.with_role("test")):
        print(f"making the face table of {name}", file=sys.stderr)
        ingest(settings, name, lambda done, total: None)
    return settings


def make_backbone(folder: Path, size: int, seed: int | None) -> Backbone:
    """The backbone of a folder with card.json, for images of `size` pixels; with random weights by `seed`."""
    card = json.loads((folder / "card.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)
        model = build_backbone(card["name"], card["arguments"])
    if seed is None:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    model.set_input_size(img_size=size)  # resamples the position embeddings
    arguments = {**card["arguments"], "img_size": size}
    return Backbone(model.eval(), tuple(card["mean"]), tuple(card["std"]), card["name"], arguments)


def probe_figures(backbone: Backbone, settings: Settings) -> Figures:
    """Frame and video AUC of the backbone's probe on each test dataset, and the means over these."""
    tables = [settings.table(name) for name in settings.with_role("train")]
    detector = Detector.build(backbone, PROBE, seed=0)
    fit_probe(detector, load_frames(tables, "train"), load_frames(tables, "val"), settings.evaluate.batch_size)
    scores = score(detector, settings, settings.with_role("test"))
    figures: Figures = {}
    for level, rows in (("frame", scored_frames(scores)), ("video", video_scores(scores))):
        for name, part in rows.groupby("dataset", observed=True):
            figures[f"{name}.{level}_auc"] = area_under_curve(part["label"].to_numpy(), part["score"].to_numpy())
        figures[f"{level}_auc"] = float(np.mean([value for key, value in figures.items() if f".{level}_" in key]))
    return figures


def record(figures: Figures, folder: Path) -> None:
    """Write the figures to the card and its README."""
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    rounded = {name.removeprefix("probe."): round(value, 4) for name, value in figures.items()}
    card["pretraining"]["london_probe"] = rounded
    write_card(card, folder)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    folder: Annotated[Path, typer.Option(help="the backbone's, with model.safetensors and card.json")] = STARTER,
    workspace: Annotated[Path | None, typer.Option(help="of London, with face tables; made where not given")] = None,
    seeds: Annotated[int, typer.Option(help="of the random weights")] = 3,
    recorded: Annotated[bool, typer.Option("--record", help="write the figures to the card")] = False,
    threads: Annotated[int, typer.Option(help="of the processor")] = 2,
) -> None:
    """Fit the probe on a pretrained backbone and on random ones, and judge both."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as root:
        settings = make_tables(Path(root)) if workspace is None else load_settings(workspace / "params.yaml")
        size = settings.crop.size
        pretrained = probe_figures(make_backbone(folder, size, None), settings)
        random = [probe_figures(make_backbone(folder, size, seed), settings) for seed in range(1, seeds + 1)]
    figures = {f"probe.pretrained.{name}": value for name, value in pretrained.items()}
    figures |= {f"probe.random.{name}": float(np.mean([run[name] for run in random])) for name in pretrained}
    figures |= {f"probe.{of}": figures[f"probe.{of}.video_auc"] for of in ("pretrained", "random")}
    if recorded:
        record(figures, folder)
    show("Linear probe on forged photographs of London", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
