"""Whose file it is, and what follows from that for names, pooling, normalisation and class order.

FSFM (CVPR 2025, arXiv 2412.12032) and FS-VFM (arXiv 2510.10663) fail silently when this is missed. Their facts:
a dict holds the weights under `model`; images are normalised by the mean and std of the pretraining faces; the
feature is the mean of the patch tokens, without the class token, and then `fc_norm`; a fine-tuned head has
fake = 0, real = 1. FS-VFM is read as FSFM by the same keys (ours: its files were not at hand).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from masm.backbones.checkpoint import Checkpoint
from masm.errors import UserError

Layout = Literal["timm", "fsfm"]
Kind = Literal["timm", "fsfm pretraining", "fsfm fine-tuned", "masm detector"]
Colour = tuple[float, float, float]

FSFM_MEAN: Colour = (0.5482207536697388, 0.42340534925460815, 0.3654651641845703)
FSFM_STD: Colour = (0.2789176106452942, 0.2438540756702423, 0.23493893444538116)
FSFM_CLASSES = ("fake", "real")

_FSFM_ALONE = ("projector.", "predictor.", "rep_decoder_")  # no other masked autoencoder has these
_FSFM_LEFT_OUT = ("mask_token", *_FSFM_ALONE, "decoder_", "norm.")
_TIMM_LEFT_OUT = ("head.", "head_dist.")


@dataclass(frozen=True)
class Reading:
    """A checkpoint, understood.

    Attributes:
        kind: whose it is, and after which training.
        weights: the backbone's, by timm's names.
        left_out: names of the tensors that a backbone has no place for, such as a decoder's.
        initial: prefixes of what the checkpoint rightly lacks; it starts as timm starts it.
        arguments: of `timm.create_model`, besides the image size.
        normalisation: mean and std of RGB in [0, 1]; None: the timm model's own.
        head: weight (1, D) and bias (1,) of the logit "fake"; None where the file has no such head.
    """

    kind: Kind
    weights: dict[str, Tensor]
    left_out: tuple[str, ...] = ()
    initial: tuple[str, ...] = ()
    arguments: Mapping[str, Any] | None = None
    normalisation: tuple[Colour, Colour] | None = None
    head: tuple[Tensor, Tensor] | None = None


def possible_kinds(checkpoint: Checkpoint) -> tuple[Kind, ...]:
    """What a checkpoint can be by its content; more than one where that does not say."""
    tensors = checkpoint.tensors
    head = tensors.get("head.weight")
    logits = len(head) if head is not None and head.ndim == 2 else None
    if logits == 1 and any(name.startswith("backbone.") for name in tensors):
        return ("masm detector",)
    if any(name.startswith(_FSFM_ALONE) for name in tensors):
        return ("fsfm pretraining",)
    if checkpoint.container == "state_dict":
        return ("timm",)
    in_model = checkpoint.container == "model"
    if logits == len(FSFM_CLASSES) and "fc_norm.weight" in tensors:
        return ("fsfm fine-tuned",) if in_model else ("fsfm fine-tuned", "timm")
    if head is None and in_model:
        return ("fsfm pretraining", "timm")
    return ("timm",)


def recognise(checkpoint: Checkpoint, layout: Layout | None) -> Reading:
    """Read a checkpoint as what it is by its content, or as the `layout` that is asked for.

    Raises:
        UserError: the content does not say and nothing is asked for, or the file holds no backbone.
    """
    kinds = possible_kinds(checkpoint)
    if kinds == ("masm detector",):
        raise UserError(
            f"{checkpoint.path} is a detector that was trained here: give the backbone that it began with."
        )
    if layout == "timm":
        return read_as(checkpoint, "timm")
    if layout == "fsfm":
        return read_as(checkpoint, "fsfm fine-tuned" if "head.weight" in checkpoint.tensors else "fsfm pretraining")
    if len(kinds) > 1:
        raise UserError(
            f"{checkpoint.path} can be FSFM's or another's by its keys, which differ in pooling and normalisation: "
            "set backbone.layout to fsfm or timm."
        )
    return read_as(checkpoint, kinds[0])


def read_as(checkpoint: Checkpoint, kind: Kind) -> Reading:
    """Read a checkpoint as one of `kind`, whether or not it is.

    Raises:
        UserError: it is to be a fine-tuned FSFM and has no head with two classes.
    """
    tensors = checkpoint.tensors
    if kind == "masm detector":
        return Reading(kind, _without(tensors, "head."), ("head.bias", "head.weight"))
    if kind == "timm":
        return Reading(kind, _without(tensors, *_TIMM_LEFT_OUT), _with(tensors, *_TIMM_LEFT_OUT))
    arguments = {"global_pool": "avg", "fc_norm": True}  # timm's mean is over the patch tokens alone
    normalisation = (FSFM_MEAN, FSFM_STD)
    if kind == "fsfm pretraining":
        weights, left_out = _without(tensors, *_FSFM_LEFT_OUT), _with(tensors, *_FSFM_LEFT_OUT)
        return Reading(kind, weights, left_out, ("fc_norm.",), arguments, normalisation)
    head = _fake_logit(checkpoint)
    return Reading(kind, _without(tensors, "head."), (), (), arguments, normalisation, head)


def _fake_logit(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """The logit "fake" of a head with two logits: the one of fake less the one of real."""
    weight, bias = (checkpoint.tensors.get(f"head.{name}") for name in ("weight", "bias"))
    classes = (len(FSFM_CLASSES),)
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[:1] != classes or bias.shape != classes:
        raise UserError(
            f"{checkpoint.path} has no head with weight and bias for the {len(FSFM_CLASSES)} classes of a fine-tuned "
            "FSFM: set backbone.layout to timm, or give another file."
        )
    fake, real = FSFM_CLASSES.index("fake"), FSFM_CLASSES.index("real")
    return (weight[fake] - weight[real])[None].float(), (bias[fake] - bias[real])[None].float()


def _with(tensors: Mapping[str, Tensor], *prefixes: str) -> tuple[str, ...]:
    return tuple(sorted(name for name in tensors if name.startswith(prefixes)))


def _without(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(prefixes)}
