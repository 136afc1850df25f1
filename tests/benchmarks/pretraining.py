"""What pretraining brings: a linear probe on frozen features of forged photographs, and of the starts before it.

The photographs are those of London in ../shared, which no pretraining here has seen; swap and reenact are what the
probe learns from, the test datasets what judges it, people disjoint. All backbones are of one architecture: the
pretrained one, random ones, and the same random ones with the whitened patch embedding that pretraining starts from.
Figures of these are means over several seeds. `--record` writes the figures to the card of the pretrained one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from masm.adapters import AdapterSettings
from masm.backbones import STARTER, Backbone, build_backbone, load_folder
from masm.data.frames import load_frames
from masm.data.ingest import ingest
from masm.data.views import DRAWN_VIEWS, Viewing, drawn_people, make_views
from masm.detector import Detector
from masm.evaluation import scored_frames, video_scores
from masm.metrics import area_under_curve
from masm.pretraining import SAMPLED, sample_of, whiten_patches
from masm.probe import fit_probe
from masm.scoring import score
from masm.settings import Settings, load_settings
from masm.workspace import YUNET, Source, create_workspace
from pipelines.pretrain import ARGUMENTS, write_card
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


def drawn_sample(seed: int) -> Tensor:
    """Images whose patches are whitened: of drawn people as a run with this seed has them, no photographs besides."""
    photographs = drawn_people(seed, SAMPLED // DRAWN_VIEWS, 1)
    size, patch = ARGUMENTS["img_size"], ARGUMENTS["patch_size"]
    viewings = [Viewing(photo, DRAWN_VIEWS, size, patch, seed) for photo in photographs]
    return sample_of(make_views(viewings, lambda done: None))


def random_backbone(pretrained: Backbone, size: int, seed: int, whitened: Tensor | None) -> Backbone:
    """The pretrained backbone with random weights for images of `size` pixels.

    Where a sample is given, its patches are whitened: so pretraining starts.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = build_backbone(pretrained.name, {**pretrained.arguments, "img_size": ARGUMENTS["img_size"]})
    if whitened is not None:
        whiten_patches(model, whitened)
    model.set_input_size(img_size=size)  # resamples the position embeddings, as loading does
    return replace(pretrained, model=model.eval())


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
    """Fit the probe on a pretrained backbone and on those that it could have started as, and judge all."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as root:
        settings = make_tables(Path(root)) if workspace is None else load_settings(workspace / "params.yaml")
        pretrained = load_folder(folder, settings.crop.size)
        starts: dict[str, Tensor | None] = {"random": None, "whitened": drawn_sample(settings.seed)}
        runs = {"pretrained": [probe_figures(pretrained, settings)]}
        for name, sample in starts.items():
            backbones = (random_backbone(pretrained, settings.crop.size, 1 + seed, sample) for seed in range(seeds))
            runs[name] = [probe_figures(backbone, settings) for backbone in backbones]
    figures: Figures = {}
    for name, found in runs.items():
        figures |= {f"probe.{name}.{key}": float(np.mean([run[key] for run in found])) for key in found[0]}
    figures |= {f"probe.{name}": figures[f"probe.{name}.video_auc"] for name in runs}
    if recorded:
        record(figures, folder)
    show("Linear probe on forged photographs of London", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
