"""Makes the starter backbone that ships with the package: `python -m pipelines.pretrain`.

Not a stage of the demo: its result lies in masm/starter/. Settings: `seed` and `pretrain` of params.yaml.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from masm.backbones import STARTER, build_backbone
from masm.pretraining import VIEWS, PretrainRecipe, draw_views, pretrain
from masm.settings import Settings
from pipelines import run_stage

NAME = "vit_tiny_patch16_224"  # timm's; these arguments make of it a transformer for small images
ARGUMENTS: dict[str, Any] = {"img_size": 64, "patch_size": 8, "depth": 6, "global_pool": "avg", "fc_norm": False}

README = """\
# The starter backbone

`model.safetensors` holds a vision transformer without head: timm's `{name}` with
`{arguments}`, mean and std 0.5. This project pretrained it by masked
autoencoding (75 % of the patches hidden; the patch embedding starts as a whitening, and the energies of the
patches are predicted beside the pixels) on faces that `masm/data/procedural.py` drew: {people} people,
{photographs} photographs of each, {views} crops of each photograph through a random camera of `masm/data/camera.py`.
It saw no photograph of a person, and no forgery.

- Command: `{command}`, seed {seed}, {steps} steps of {batch_size} images, peak learning rate {lr}.
- Loss reached: {loss:.4f} (mean squared error on hidden patches, each normalised to variance 1, plus
  half of that on the normalised log energies of all patches).
- Took {minutes:.0f} minutes on {machine}, torch {torch}.
  Another machine rounds differently: there the command gives weights that are not bit-identical to these.
- Licence: Apache-2.0, as the rest of the project.
- Limits: it has seen drawn faces alone and knows little of real ones. It is there so that the demo adapts
  weights that mean something; take a backbone pretrained on photographs for work on photographs.
"""


def main(settings: Settings, folder: Path = STARTER) -> None:
    """Draw the faces, pretrain, and write model.safetensors, card.json and README.md to `folder`."""
    recipe = PretrainRecipe(seed=settings.seed, **settings.pretrain.model_dump())
    started = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        encoder = build_backbone(NAME, ARGUMENTS)
    with Progress(console=Console(stderr=True)) as bar:
        images = _draw(recipe, bar)
        task = bar.add_task("pretrain", total=recipe.steps)

        def progress(step: int, loss: float) -> None:
            bar.update(task, completed=step, description=f"pretrain, loss {loss:.4f}")

        loss = pretrain(encoder, images, recipe, progress)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    card = _card(recipe, loss, (time.monotonic() - started) / 60)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "README.md").write_text(README.format(**card, **card["pretraining"]))


def _draw(recipe: PretrainRecipe, bar: Progress) -> np.ndarray:
    views = draw_views(recipe, ARGUMENTS["img_size"])
    return np.concatenate(list(bar.track(views, total=recipe.people, description="draw faces")))


def _card(recipe: PretrainRecipe, loss: float, minutes: float) -> dict[str, Any]:
    half = [0.5, 0.5, 0.5]
    machine = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    return {
        "name": NAME, "arguments": ARGUMENTS, "mean": half, "std": half, "license": "Apache-2.0",
        "pretraining": {
            "command": "python -m pipelines.pretrain", **vars(recipe), "views": VIEWS, "loss": loss,
            "minutes": round(minutes, 1), "machine": machine, "torch": torch.__version__,
        },
    }  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
