"""Makes the starter backbone that ships with the package: `python -m pipelines.pretrain`.

Not a stage of the demo: its result lies in masm/starter/. Settings: `seed`, `pretrain` and `ray` of params.yaml. A run
that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from safetensors.torch import save_file

from masm.backbones import STARTER, build_backbone
from masm.backbones.inspection import file_hash
from masm.cluster import connected
from masm.console import STDERR, Progress
from masm.data.importers.drawn import DrawnPhotograph
from masm.data.importers.folder import FilePhotograph
from masm.data.importers.photograph import Photograph
from masm.data.versions import PACKAGE, code_digest
from masm.data.views import DRAWN_VIEWS, Viewing, Views, digest_of, drawn_people, make_views, photographs_in
from masm.objective import ALONE, Place
from masm.pretraining import Pretrainer, PretrainRecipe, TermWeights
from masm.settings import Pretrain, Settings, fingerprint
from pipelines import run_stage
from pipelines.workers import Group, Reporter, discard_run, load_last, replicate, report, run_workers, sole_driver

NAME = "vit_tiny_patch16_224"  # timm's; these arguments make of it a transformer for small images
ARGUMENTS: dict[str, Any] = {"img_size": 64, "patch_size": 8, "depth": 6, "global_pool": "avg", "fc_norm": False}
CHECKPOINT_STEPS = 100
MAX_FAILURES = 2

README = """\
# The starter backbone

`model.safetensors` holds a vision transformer without head: timm's `{name}` with
`{arguments}`, mean and std 0.5.
This project pretrained it by masked autoencoding after FSFM (CVPR 2025) on faces without a forgery: {hidden:.0%} of
the patches hidden, one facial region whole and a like share of the others; the visible patches aligned with a slow
copy's view of the whole face. Ours: the patch embedding starts as a whitening, and the energies of the patches are
predicted beside the pixels. `docs/explanation/pretraining.md` says more.

What it saw, and no forgery:
{saw}

- Command: {command}:
  seed {seed}, {steps} steps of {batch_size} images, peak learning rate {lr}.
- Loss reached: {loss[total]:.4f} ({terms}).
- Its steps took {minutes:.0f} minutes with {workers} workers on {machine}, torch {torch}.
  Another machine rounds differently: there the command gives weights that are not bit-identical to these.
{probe}- Licence: Apache-2.0, as the rest of the project.
- Limits: it is small, and knows few real faces or none. It is there so that the demo adapts weights that mean
  something; take a backbone pretrained on many photographs for work on photographs.
"""

PROBED = """\
- A linear probe on its frozen features, fit on forged photographs of London: mean video AUC {pretrained:.3f} on the
  test datasets, people disjoint; with random weights {random:.3f}, with these and the patch embedding whitened,
  as pretraining starts, {whitened:.3f} (`python -m tests.benchmarks.pretraining`).
"""


def main(settings: Settings, folder: Path = STARTER) -> None:
    """Draw and find the faces, pretrain, and write model.safetensors, card.json and README.md to `folder`."""
    chosen = settings.pretrain
    photographs = _photographs(settings)
    digest = digest_of(photographs)
    made_by = (NAME, ARGUMENTS, _detector_digest(settings), code_digest(PACKAGE))
    name = f"pretrain-{fingerprint(settings.seed, chosen, digest, *made_by)}"
    stored = settings.root / "data" / "work" / "pretrain" / f"{_views_name(settings, digest)}.safetensors"
    group = Group(name, settings.ray.storage, chosen.workers, MAX_FAILURES)
    with sole_driver(group):
        views = _views(settings, photographs, stored)
        with connected(settings.ray, cpus=chosen.workers):
            config = {"settings": settings, "views": ray.put(views)}  # workers on other machines have not this disk
            result = run_workers(worker, config, group, "pretrain", chosen.steps)
            trainer = make_pretrainer(settings, views)
            load_last(result, trainer)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: value.contiguous() for key, value in trainer.model.encoder.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
        write_card(_card(settings, trainer, _saw(settings, views, photographs, digest)), folder)
        stored.unlink()
        discard_run(settings.ray.storage, name)


def write_card(card: dict[str, Any], folder: Path) -> None:
    """Write card.json, and README.md that says the same in words."""
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    made, saw = card["pretraining"], []
    for item in made["saw"]:
        saw.append(f"- {item['crops']} crops of {item['photographs']} photographs: {item['origin']}")
        if "sha256" in item:
            saw.append(f"  (SHA-256 of the list of the files' SHA-256: `{item['sha256']}`)")
    terms = ", ".join(f"{name} {value:.4f}" for name, value in made["loss"].items() if name != "total")
    probe = PROBED.format(**made["london_probe"]) if "london_probe" in made else ""
    words = {**made, "terms": terms, "saw": "\n".join(saw), "probe": probe}
    (folder / "README.md").write_text(README.format(**card, **words))


def make_pretrainer(
    settings: Settings,
    views: Views,
    place: Place = ALONE,
    replicate: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module,
) -> Pretrainer:
    """The run that params.yaml asks for; every worker, and the command itself, makes the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        encoder = build_backbone(NAME, ARGUMENTS)
    chosen = settings.pretrain
    weights = TermWeights(**chosen.weights.model_dump())
    recipe = PretrainRecipe(
        settings.seed, chosen.steps, chosen.batch_size, chosen.lr, chosen.hidden, chosen.momentum, weights
    )
    return Pretrainer(encoder, views, recipe, place, replicate)


def worker(config: dict[str, Any]) -> None:
    """One worker of the group: step by step, with a checkpoint after every hundred."""
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size())
    settings: Settings = config["settings"]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    trainer = make_pretrainer(settings, ray.get(config["views"]), place, replicate)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            trainer.load(Path(folder))
    show = Reporter(config["queue"], epoch=0)
    while not trainer.finished:
        trainer.step()
        done = len(trainer.losses)
        if place.rank == 0:
            show(done, trainer.recipe.steps)
        if done % CHECKPOINT_STEPS == 0 or trainer.finished:
            report(trainer.mean_losses(), trainer.save)


def _photographs(settings: Settings) -> list[FilePhotograph]:
    chosen = settings.pretrain
    if chosen.folder is None:
        return []
    assert chosen.detector_weights is not None  # Settings sees to it
    return photographs_in(settings.path(chosen.folder), settings.path(chosen.detector_weights))


def _views_name(settings: Settings, digest: str) -> str:
    """Another one whenever the views would be others."""
    chosen = settings.pretrain
    made_by = (ARGUMENTS, _detector_digest(settings), code_digest(PACKAGE / "data"))
    return fingerprint(settings.seed, chosen.people, chosen.photographs, chosen.views, digest, *made_by)


def _detector_digest(settings: Settings) -> str | None:
    """Of the file that finds the folder's faces."""
    chosen = settings.pretrain
    if chosen.folder is None or chosen.detector_weights is None:
        return None
    return file_hash(settings.path(chosen.detector_weights))


def _drawn(settings: Settings) -> list[DrawnPhotograph]:
    return drawn_people(settings.seed, settings.pretrain.people, settings.pretrain.photographs)


def _views(settings: Settings, photographs: Sequence[FilePhotograph], stored: Path) -> Views:
    """The views that lie there, or new ones, which are then stored."""
    if stored.exists():
        return Views.load(stored)
    chosen, size, patch = settings.pretrain, ARGUMENTS["img_size"], ARGUMENTS["patch_size"]
    viewings = [Viewing(photo, DRAWN_VIEWS, size, patch, settings.seed) for photo in _drawn(settings)]
    viewings += [Viewing(photo, chosen.views, size, patch, settings.seed) for photo in photographs]
    with Progress() as bar:
        task = bar.add_task("views", total=len(viewings))
        views = make_views(viewings, lambda done: bar.update(task, completed=done))
    for name, reason in views.unusable.items():
        STDERR.print(f"pretrain: {name} gives no face: {reason}", style="yellow", highlight=False)
    stored.parent.mkdir(parents=True, exist_ok=True)
    views.save(stored)
    return views


def _saw(settings: Settings, views: Views, photographs: Sequence[FilePhotograph], digest: str) -> list[dict[str, Any]]:
    """What the run learned from: counts, origins and terms."""
    chosen, saw = settings.pretrain, []
    if drawn := _drawn(settings):
        origin = "faces drawn by masm/data/procedural.py (Apache-2.0)"
        saw.append({**_counts(drawn, DRAWN_VIEWS, views), "people": chosen.people, "origin": origin})
    if photographs:
        saw.append({**_counts(photographs, chosen.views, views), "origin": chosen.origin, "sha256": digest})
    return saw


def _counts(photographs: Sequence[Photograph], crops: int, views: Views) -> dict[str, Any]:
    """How many of the photographs gave `crops` crops each, and which gave none."""
    unusable = {photo.name: views.unusable[photo.name] for photo in photographs if photo.name in views.unusable}
    usable = len(photographs) - len(unusable)
    return {"photographs": usable, "crops": usable * crops, "unusable": unusable}


def _card(settings: Settings, trainer: Pretrainer, saw: list[dict[str, Any]]) -> dict[str, Any]:
    half = [0.5, 0.5, 0.5]
    chosen = settings.pretrain.model_dump(exclude={"folder", "detector_weights", "origin"})
    return {
        "name": NAME, "arguments": ARGUMENTS, "mean": half, "std": half, "license": "Apache-2.0",
        "pretraining": {
            "command": _command(settings.pretrain), "seed": settings.seed, **chosen, "saw": saw,
            "loss": trainer.mean_losses(), "minutes": round(trainer.seconds / 60, 1),
            "machine": trainer.machine, "torch": torch.__version__,
        },
    }  # fmt: skip


def _command(chosen: Pretrain) -> str:
    photographs = "" if chosen.folder is None else " with `pretrain.folder` at the photographs that it saw"
    return f"`python -m pipelines.pretrain`{photographs}"


if __name__ == "__main__":
    run_stage(main)
