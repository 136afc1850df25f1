"""Compares methods on a workspace's data: `python -m pipelines.compare`, as `compare` of params.yaml says.

Not a stage of the demo. Every method is trained by the same loop on the train datasets, once for each seed, and
judged on all test datasets. Each run leaves compare/METHOD-SEED.json and its scores; a run that is there and was
made with the same settings and data is not repeated, so that a killed comparison goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress

from masm import __version__
from masm.comparison import compare_methods, markdown_table
from masm.data.frames import Frames, load_frames
from masm.data.versions import digests, fetch_missing
from masm.evaluation import macro_video_auc
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe
from masm.scoring import score
from masm.settings import Candidate, Settings, fingerprint
from masm.training import Trainer
from pipelines import run_stage


@dataclass(frozen=True)
class Run:
    """One method with one seed, and the settings that make it so."""

    method: str
    seed: int
    settings: Settings
    candidate: Candidate

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.method}-{self.seed}"

    @property
    def made_with(self) -> str:
        """Stands for the settings and data that the result depends on."""
        settings = self.settings
        used = {*settings.with_role("train"), *settings.with_role("test")}
        return fingerprint(
            settings.seed,
            settings.crop,
            settings.backbone,
            settings.adapter.model_dump(mode="json", exclude={"cache"}),
            settings.mask,
            settings.train.model_dump(exclude={"workers", "max_failures", "false_positive_rate"}),
            self.candidate,
            {name: digest for name, digest in digests(settings).items() if name in used},
        )


def main(settings: Settings) -> None:
    """Train and score what is missing in compare/, and write `compare.table`."""
    datasets = (*settings.with_role("train"), *settings.with_role("test"))
    fetch_missing(settings.root, [f"ingest@{name}" for name in datasets])
    runs, folder = plan(settings), settings.root / "compare"
    folder.mkdir(exist_ok=True)
    tables = [settings.table(name) for name in settings.with_role("train")]
    frames, validation = load_frames(tables, "train"), load_frames(tables, "val")
    with Progress(console=Console(stderr=True)) as bar:
        for run in bar.track(runs, description="compare"):
            if not is_done(run, folder):
                execute(run, frames, validation, folder, bar)
    table = settings.path(settings.compare.table)
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(write_up(settings, runs, folder))
    Console(stderr=True).print(f"compare: {len(runs)} runs; {table} has the table", highlight=False)


def plan(settings: Settings) -> list[Run]:
    """All runs, seed by seed, so that a comparison that was cut short holds every method alike."""
    runs = []
    for seed in range(settings.seed, settings.seed + settings.compare.seeds):
        for method, candidate in settings.compare.methods.items():
            changed = {
                "seed": seed,
                "adapter": settings.adapter.model_copy(update={"method": method}),
                "train": settings.train.model_copy(update={"lr": candidate.lr}),
            }
            runs.append(Run(method, seed, settings.model_copy(update=changed), candidate))
    return runs


def is_done(run: Run, folder: Path) -> bool:
    """Whether the folder holds this very run, with its scores."""
    if not (folder / f"{run.name}.parquet").is_file():
        return False
    try:
        return json.loads((folder / f"{run.name}.json").read_text())["made_with"] == run.made_with
    except (OSError, ValueError, KeyError):
        return False


def execute(run: Run, frames: Frames, validation: Frames, folder: Path, bar: Progress) -> None:
    """Train and score one run, and write its two files; the JSON comes last, and says that it is whole."""
    started = time.monotonic()
    found = Hyperparameters.of(run.candidate.model_dump(exclude={"lr"}))
    detector = build_detector(run.settings, found).to("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(detector, make_recipe(run.settings, run.settings.train, found), frames, validation)
    task = bar.add_task(run.name, total=trainer.steps)
    while not trainer.finished:
        trainer.run_epoch(lambda step, steps: bar.advance(task))
    trainer.load_best()
    scores = score(detector, run.settings, run.settings.with_role("test"))
    bar.remove_task(task)
    result = {
        "method": run.method,
        "seed": run.seed,
        "made_with": run.made_with,
        "hyperparameters": run.candidate.model_dump(),
        "trainable_parameters": sum(value.numel() for value in detector.parameters() if value.requires_grad),
        "val_auc": trainer.best_auc,
        "video_auc": macro_video_auc(scores),
        "history": trainer.history,
        "seconds": round(time.monotonic() - started, 1),
        "versions": _versions(),
    }
    (folder / f"{run.name}.json").unlink(missing_ok=True)
    scores.to_parquet(folder / f"{run.name}.parquet", index=False)
    partial = folder / f".{run.name}.json"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, folder / f"{run.name}.json")


TABLE = """\
{table}
Video AUC on test datasets, mean of {seeds} seeds from {seed} on. In brackets: 95 % percentile interval of a bootstrap
over people and seeds, {draws} draws that are the same for every method; the last column is paired.

- Trained on {trained}, {epochs} epochs of batches of {batch_size}, the best epoch by validation AUC on people of the
  train datasets; judged on {judged}, whose people and forgeries training has not seen.
- Backbone {backbone}, crops of {size} px; masm and lora on {targets}.
- {values}.
- The runs took {minutes:.0f} minutes in all, the last of them on {machine}, torch {torch}, masm {masm}. Command:
  `python -m pipelines.compare`; settings and data: `{made_with}`.
"""


def write_up(settings: Settings, runs: list[Run], folder: Path) -> str:
    """The table in Markdown, and how it was made."""
    results = [json.loads((folder / f"{run.name}.json").read_text()) for run in runs]
    scores: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        scores.setdefault(run.method, []).append(pd.read_parquet(folder / f"{run.name}.parquet"))
    standings = compare_methods(scores, settings.evaluate.draws, settings.seed)
    given = {name: candidate.model_dump(exclude_unset=True) for name, candidate in settings.compare.methods.items()}
    return TABLE.format(
        table=markdown_table(standings, {result["method"]: result["trainable_parameters"] for result in results}),
        seeds=settings.compare.seeds,
        seed=settings.seed,
        draws=settings.evaluate.draws,
        trained=", ".join(settings.with_role("train")),
        judged=", ".join(settings.with_role("test")),
        epochs=settings.train.epochs,
        batch_size=settings.train.batch_size,
        backbone=settings.backbone.name,
        size=settings.crop.size,
        targets=", ".join(settings.adapter.targets),
        values="; ".join(f"{name}: {_listed(values)}" for name, values in given.items()),
        minutes=sum(result["seconds"] for result in results) / 60,
        made_with=fingerprint([run.made_with for run in runs]),
        **results[-1]["versions"],
    )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _versions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {"machine": f"{device} ({platform.machine()})", "torch": torch.__version__, "masm": __version__}


if __name__ == "__main__":
    run_stage(main)
