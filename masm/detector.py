"""The detector: a backbone, its adapter and a linear head with one logit; saved as safetensors and JSON."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from masm import __version__
from masm.adapters import AdapterSettings, SubspaceLinear, adapt, adapted_layers, merge, restored_subspace, shares
from masm.backbones import Backbone, build_backbone, state_differences
from masm.errors import UserError

CLASSES = ("real", "fake")
_WEIGHTS, _CARD = "model.safetensors", "detector.json"
_WRITTEN = ("architecture", "adapter", "classes", "versions")  # what `save` adds to the card
_HEAD_STD = 0.02  # the usual one of vision transformers


@dataclass(frozen=True)
class Architecture:
    """All that it takes to build a detector's backbone again without its weights.

    `name` and `arguments` are timm's; `mean` and `std` normalise RGB in [0, 1].
    """

    name: str
    arguments: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Detector(nn.Module):
    """Scores face crops: images (B, 3, S, S) in [0, 1] to logits (B,), positive for fake.

    Args:
        backbone: a timm model without head, already adapted.
        architecture: what `backbone` was before.
        adapter: how it was adapted.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, architecture: Architecture, adapter: AdapterSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(cast(int, backbone.num_features), 1)
        self.architecture, self.adapter = architecture, adapter
        self.card: dict[str, Any] = {}
        for name in ("mean", "std"):
            values = torch.tensor(getattr(architecture, name)).reshape(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def build(cls, backbone: Backbone, adapter: AdapterSettings, seed: int, cache: Path | None = None) -> Detector:
        """A detector to be trained, on a copy of the pretrained `backbone`.

        Its head starts as the backbone's own where that was fine-tuned, so that the first logits are those of
        the fine-tuned model; but for layernorm, whose head sees features of another length.

        Args:
            backbone: stays as it is.
            adapter: how to adapt it.
            seed: draws the head's weights where the backbone brings none, and LoRA's.
            cache: a folder that keeps decompositions; None makes them anew.

        Raises:
            UserError: the backbone cannot be adapted in this way.
        """
        model = copy.deepcopy(backbone.model)
        adapt(model, adapter, cache=cache, seed=seed)
        architecture = Architecture(backbone.name, backbone.arguments, backbone.mean, backbone.std)
        detector = cls(model, architecture, adapter)
        if backbone.head is not None and not adapter.unit_features:
            weight, bias = backbone.head
            detector.head.load_state_dict({"weight": weight, "bias": bias})
        else:
            nn.init.normal_(detector.head.weight, std=_HEAD_STD, generator=torch.Generator().manual_seed(seed))
            nn.init.zeros_(detector.head.bias)
        return detector

    @property
    def device(self) -> torch.device:
        """Where the detector lies, and wants its images."""
        return self.mean.device

    @property
    def layers(self) -> dict[str, SubspaceLinear]:
        """The layers with artifact subspaces by name; none for other methods and for merged weights."""
        return adapted_layers(self.backbone)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features (B, D) of images (B, 3, S, S) in [0, 1]; of length 1 where the method is layernorm."""
        features = self.backbone((images - self.mean) / self.std)
        return functional.normalize(features.float(), dim=-1) if self.adapter.unit_features else features

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B,) in float32 of features (B, D), as `embed` gives them."""
        return self.head(features).squeeze(-1).float()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B,) in float32 of images (B, 3, S, S) in [0, 1]."""
        return self.classify(self.embed(images))

    def parameter_groups(self, lr: float, head_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: what learns of the backbone, if anything does, and the head.

        Weight decay is the head's alone: it would pull the rest away from the pretrained weights.
        """
        adapted = [value for value in self.backbone.parameters() if value.requires_grad]
        head = {"params": list(self.head.parameters()), "lr": head_lr, "weight_decay": weight_decay}
        return [{"params": adapted, "lr": lr, "weight_decay": 0.0}, head] if adapted else [head]

    @torch.inference_mode()
    def subspace_shares(self, images: Tensor) -> Tensor:
        """How much each artifact subspace has to say about images (B, 3, S, S) in [0, 1]: (B, K), see `shares`.

        K more forward passes, each with one subspace of all layers at its pretrained value. Not to be called
        while another thread uses the detector.

        Raises:
            UserError: the detector has no subspaces.
        """
        layers = self.layers
        if not layers:
            raise UserError(
                f"a detector of method {self.adapter.method} has no artifact subspaces: load one of method masm or "
                "effort, not merged."
            )
        logits, restored = self(images), []
        for index in range(len(next(iter(layers.values())).subspaces)):
            with restored_subspace(layers, index):
                restored.append(self(images))
        return shares(logits, torch.stack(restored, dim=1))

    def merged(self) -> Detector:
        """A copy whose backbone is plain timm: the same logits to 1e-5, no cost of the adapter."""
        detector = Detector(merge(self.backbone), self.architecture, self.adapter.merged)
        detector.head, detector.card = copy.deepcopy(self.head), copy.deepcopy(self.card)
        return detector.to(self.device).train(self.training)

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Write `model.safetensors` and `detector.json`; a former folder is replaced once both are there.

        `card` (JSON values) is kept with the weights and comes back as `card`: the crop profile, the
        decisions.
        """
        fresh, former = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, fresh / _WEIGHTS)
        description = {
            "architecture": asdict(self.architecture),
            "adapter": asdict(self.adapter),
            "classes": CLASSES,
            "versions": _versions(),
            **card,
        }
        (fresh / _CARD).write_text(json.dumps(description, indent=2) + "\n")
        if folder.exists():
            folder.rename(former)
        fresh.rename(folder)
        shutil.rmtree(former, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, merged: bool = False) -> Detector:
        """Read a folder that `save` wrote; the backbone's own file is not needed.

        Args:
            folder: with `model.safetensors` and `detector.json`.
            merged: write the adapter back into plain linear layers, for inference.

        Raises:
            UserError: a file is missing or damaged, or the weights do not fit the description.
        """
        description = _read_description(folder / _CARD)
        try:
            architecture = Architecture(**description["architecture"])
            stored = description["adapter"]
            adapter = AdapterSettings(**{**stored, "targets": tuple(stored["targets"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / _CARD} does not describe a detector ({error!r}): save it again.") from None
        backbone = build_backbone(architecture.name, architecture.arguments)
        adapt(backbone, adapter, initialise=False)
        detector = cls(backbone, architecture, adapter)
        detector.card = {key: value for key, value in description.items() if key not in _WRITTEN}
        _load_weights(detector, folder / _WEIGHTS)
        return detector.merged() if merged else detector


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in a detector's folder, in hexadecimal: which detector it is.

    Raises:
        UserError: there are none.
    """
    try:
        with open(folder / _WEIGHTS, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{folder / _WEIGHTS} cannot be read ({error.strerror}): name a detector's folder.") from None


def _versions() -> dict[str, str]:
    return {
        "masm": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "safetensors": safetensors.__version__,
    }


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a detector's folder.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): save the detector again.") from error
    if not isinstance(description, dict):
        raise UserError(f"{path} does not describe a detector: save it again.")
    return description


def _load_weights(detector: Detector, path: Path) -> None:
    try:
        weights = load_file(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: name the folder of a saved detector.") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): save or fetch it again.") from error
    if differences := state_differences(weights, detector.state_dict()):
        raise UserError(
            f"{path} was not made with the settings of its {_CARD} ({differences}): bring back the file that was "
            "saved with it, or save the detector again."
        )
    detector.load_state_dict(weights)
