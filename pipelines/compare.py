"""Compares methods on a workspace's data: `python -m pipelines.compare NAME`, as `compare.NAME` of params.yaml says.

Not a stage of the demo. Every method, with each of the losses where there are several, is trained by the same loop on
the train datasets, once for each seed, and judged on all test datasets. Each run leaves compare/NAME/RUN.json and its
scores; a run that is there and was made with the same settings and data is not repeated, so that a killed comparison
goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from masm import __version__
from masm.comparison import compare_candidates, markdown_table
from masm.console import STDERR, Progress
from masm.data.frames import Frames, load_frames
from masm.data.versions import digests, fetch_missing
from masm.errors import UserError
from masm.evaluation import macro_video_auc
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe, weights_digest
from masm.scoring import score
from masm.settings import FROZEN, Candidate, Comparison, Settings, fingerprint
from masm.training import Trainer
from masm.validation import defined
from pipelines import run_stage


@dataclass(frozen=True)
class Run:
    """One method with one seed, and the settings that make it so.

    Attributes:
        method: of adaptation.
        losses: their name; empty where the comparison has no several.
        seed: of all that is drawn.
        settings: of the workspace, but for these.
        candidate: the method's values.
        weights: digest of the backbone's.
    """

    method: str
    losses: str
    seed: int
    settings: Settings
    candidate: Candidate
    weights: str

    @property
    def title(self) -> str:
        """The name of what runs with several seeds."""
        return f"{self.method}, {self.losses}" if self.losses else self.method

    @property
    def name(self) -> str:
        """The name of its files."""
        return "-".join([self.method, *([self.losses] if self.losses else []), str(self.seed)])

    @property
    def made_with(self) -> str:
        """Stands for the settings and data that the result depends on."""
        settings = self.settings
        used = {*settings.with_role("train"), *settings.with_role("test")}
        return fingerprint(
            settings.seed,
            settings.crop,
            settings.backbone,
            self.weights,
            settings.adapter.model_dump(mode="json", exclude={"cache"}),
            settings.mask,
            settings.losses,
            settings.train.model_dump(exclude={"workers", "max_failures", "false_positive_rate"}),
            self.candidate,
            {name: digest for name, digest in digests(settings).items() if name in used},
        )


def main(settings: Settings, name: str) -> None:
    """Train and score what is missing in compare/NAME, and write the comparison's table.

    Raises:
        UserError: params.yaml has no comparison of this name, or it cannot be run.
    """
    if name not in settings.compare:
        raise UserError(f"params.yaml has no compare.{name}: choose one of {', '.join(settings.compare)}, or add it.")
    comparison = settings.compare[name]
    datasets = (*settings.with_role("train"), *settings.with_role("test"))
    fetch_missing(settings.root, [f"ingest@{dataset}" for dataset in datasets])
    runs, folder = plan(settings, comparison), settings.root / "compare" / name
    folder.mkdir(parents=True, exist_ok=True)
    tables = [settings.table(dataset) for dataset in settings.with_role("train")]
    frames, validation = load_frames(tables, "train"), load_frames(tables, "val")
    with Progress() as bar:
        for run in bar.track(runs, description="compare"):
            if not is_done(run, folder):
                execute(run, frames, validation, folder, bar)
    table = settings.path(comparison.table)
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(write_up(settings, name, runs, folder))
    STDERR.print(f"compare: {len(runs)} runs; {table} has the table", highlight=False)


def plan(settings: Settings, comparison: Comparison) -> list[Run]:
    """All runs, seed by seed, so that a comparison that was cut short holds every method alike.

    Raises:
        UserError: it has the probe with losses that have nothing to teach it, or the backbone's file is missing.
    """
    if "probe" in comparison.methods and not comparison.losses and settings.losses.in_use():
        raise UserError(f"{FROZEN}: switch off `losses` of params.yaml, or take probe out of the comparison.")
    runs, weights = [], weights_digest(settings)
    for seed in range(settings.seed, settings.seed + comparison.seeds):
        for method, candidate in comparison.methods.items():
            for name, losses in (comparison.losses or {"": settings.losses}).items():
                changed = {
                    "seed": seed,
                    "adapter": settings.adapter.model_copy(update={"method": method}),
                    "losses": losses,
                    "train": settings.train.model_copy(update={"lr": candidate.lr}),
                }
                runs.append(Run(method, name, seed, settings.model_copy(update=changed), candidate, weights))
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
    found = Hyperparameters.of(run.candidate.model_dump(exclude={"lr"}), run.settings.losses)
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
        "losses": run.settings.losses.model_dump(),
        "seed": run.seed,
        "made_with": run.made_with,
        "hyperparameters": run.candidate.model_dump(),
        "trainable_parameters": sum(value.numel() for value in detector.parameters() if value.requires_grad),
        "val_auc": trainer.best_auc,
        **defined({"video_auc": macro_video_auc(scores)}),
        "history": [defined(line) for line in trainer.history],
        "seconds": round(time.monotonic() - started, 1),
        "versions": _versions(),
    }
    (folder / f"{run.name}.json").unlink(missing_ok=True)
    scores.to_parquet(folder / f"{run.name}.parquet", index=False)
    unfinished = folder / f".{run.name}.json"
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(unfinished, folder / f"{run.name}.json")


TABLE = """\
{table}
Video AUC on test datasets, mean of {seeds} seeds from {seed} on. In brackets: 95 % percentile interval of a bootstrap
over people and seeds, {draws} draws that are the same for every method; {paired}.

- Trained on {trained}, {epochs} epochs of batches of {batch_size}, the best epoch by validation AUC on people of the
  train datasets; judged on {judged}, whose people and forgeries training has not seen.
- Backbone {backbone}, crops of {size} px; masm and lora on {targets}.
- {values}.
- Losses beside cross-entropy: {losses}.
- The runs took {minutes:.0f} minutes in all, the last of them on {machine}, torch {torch}, masm {masm}. Command:
  `python -m pipelines.compare {name}`; settings and data: `{made_with}`.
"""


def write_up(settings: Settings, name: str, runs: list[Run], folder: Path) -> str:
    """The table in Markdown, and how it was made."""
    comparison = settings.compare[name]
    results = [json.loads((folder / f"{run.name}.json").read_text()) for run in runs]
    scores: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        scores.setdefault(run.title, []).append(pd.read_parquet(folder / f"{run.name}.parquet"))
    first = next(iter(comparison.losses), "")
    plain = {run.method: run.title for run in runs if run.losses == first}
    baselines = {run.title: plain[run.method] for run in runs if run.losses != first}
    standings = compare_candidates(scores, baselines, settings.evaluate.draws, settings.seed)
    parameters = {run.title: result["trainable_parameters"] for run, result in zip(runs, results, strict=True)}
    given = {method: candidate.model_dump(exclude_unset=True) for method, candidate in comparison.methods.items()}
    losses = {title: _listed(own.in_use()) for title, own in (comparison.losses or {"": settings.losses}).items()}
    return TABLE.format(
        name=name,
        table=markdown_table(standings, parameters),
        paired=f"gain is over the same method's {first}; it and the last column are paired"
        if first
        else "the last column is paired",
        seeds=comparison.seeds,
        seed=settings.seed,
        draws=settings.evaluate.draws,
        trained=", ".join(settings.with_role("train")),
        judged=", ".join(settings.with_role("test")),
        epochs=settings.train.epochs,
        batch_size=settings.train.batch_size,
        backbone=settings.backbone.name,
        size=settings.crop.size,
        targets=", ".join(settings.adapter.targets),
        values="; ".join(f"{method}: {_listed(values)}" for method, values in given.items()),
        losses="; ".join(f"{title}: {own}" if title else own for title, own in losses.items() if own) or "none",
        minutes=sum(result["seconds"] for result in results) / 60,
        made_with=fingerprint([run.made_with for run in runs]),
        **results[-1]["versions"],
    )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _versions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {"machine": f"{device} ({platform.machine()})", "torch": torch.__version__, "masm": __version__}


def command(name: Annotated[str, typer.Argument(help="of a comparison in params.yaml's `compare`")]) -> None:
    """Run one comparison of ./params.yaml, or what is left of it."""
    run_stage(partial(main, name=name))


if __name__ == "__main__":
    typer.run(command)
