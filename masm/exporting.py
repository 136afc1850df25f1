"""A detector as one file for other programs, ONNX or PyTorch's .pt2: with the same scores, or there is no file."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from masm.detector import CLASSES, Detector
from masm.errors import CheckFailed, UserError

Format = Literal["onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
TOLERANCE = 1e-4
"""By how much an exported logit may differ, and by this share of itself besides."""
BATCHES = (1, 2, 3, 5, 8, 13)
"""Sizes of the random batches on which the two are compared."""
METADATA = "masm.json"
"""Of a .pt2 file its extra file, of an ONNX file its metadata entry: JSON, see `describe`."""

Run = Callable[[Tensor], np.ndarray]


def export(detector: Detector, path: Path, form: Format) -> float:
    """Write a detector with merged weights as one file; any batch size goes in.

    The exported model maps `images` (B, 3, S, S) float32, RGB in [0, 1], to `logits` (B,), positive for fake; it
    normalises by itself. Metadata says what the logits mean, see `describe`.

    Args:
        detector: on the CPU, merged.
        path: replaced once the file is whole and its logits are the detector's.
        form: onnx or torch.

    Returns:
        The largest difference of a logit that was seen.

    Raises:
        UserError: the file's name does not fit, onnx is not installed, or the file cannot be written.
        CheckFailed: the exported model gives other logits.
    """
    if path.suffix != (suffix := ".onnx" if form == "onnx" else ".pt2"):
        raise UserError(f"--out {path}: a file of format {form} is named *{suffix}.")
    write = _write_onnx if form == "onnx" else _write_program
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            partial = Path(folder, path.name)  # under its own name, which a .pt2 file repeats inside
            difference = largest_difference(detector, write(detector.eval(), partial))
            os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): name another place.") from None
    return difference


def describe(detector: Detector) -> dict[str, Any]:
    """What a program needs to know of the exported file.

    `input`, `output` and `classes`; and of detector.json its `crop` (how a face is cut), its thresholds and its
    calibration.
    """
    size = image_size(detector)
    return {
        "input": {"name": "images", "shape": ["batch", 3, size, size], "channels": "RGB", "range": [0, 1]},
        "output": {"name": "logits", "shape": ["batch"], "score": "sigmoid of the logit", "positive": CLASSES[1]},
        "classes": CLASSES,
        "architecture": asdict(detector.architecture),
        **detector.card,
    }


def image_size(detector: Detector) -> int:
    """Side of the square images that the backbone takes, px."""
    patches: Any = detector.backbone.get_submodule("patch_embed")
    return int(patches.img_size[0])


def largest_difference(detector: Detector, run: Run) -> float:
    """The largest difference between a detector's logits and another program's, on noise.

    Raises:
        CheckFailed: it is above TOLERANCE.
    """
    generator, size, largest = torch.Generator().manual_seed(0), image_size(detector), 0.0
    for batch in BATCHES:
        # Of several contrasts, as noise of one alone gives nearly the same logit each time.
        contrast = torch.rand(batch, 1, 1, 1, generator=generator)
        images = 0.5 + contrast * (torch.rand(batch, 3, size, size, generator=generator) - 0.5)
        with torch.inference_mode():
            expected = detector(images).numpy()
        found = run(images)
        if not np.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise CheckFailed(
                f"the exported model gives {found.tolist()} for a batch of {batch}, the detector {expected.tolist()}: "
                "no file was written."
            )
        largest = max(largest, float(np.abs(found - expected).max()))
    return largest


def _example(detector: Detector) -> tuple[tuple[Tensor], dict[str, Any]]:
    """Images to trace the detector with, and what of their shape may change."""
    size = image_size(detector)
    return (torch.rand(2, 3, size, size),), {"images": {0: Dim("batch")}}


def _write_program(detector: Detector, path: Path) -> Run:
    images, shapes = _example(detector)
    program = torch.export.export(detector, images, dynamic_shapes=shapes)
    program.example_inputs = None  # the only part of the file that would be pickled
    torch.export.save(program, path, extra_files={METADATA: json.dumps(describe(detector))})
    module = torch.export.load(path).module()

    def run(images: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return module(images).numpy()

    return run


def _write_onnx(detector: Detector, path: Path) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter is written in it
    except ImportError as error:
        raise UserError(f"ONNX needs packages that are not installed ({error.name}): install masm[export].") from None
    images, shapes = _example(detector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            detector,
            images,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props[METADATA] = json.dumps(describe(detector))
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images.numpy()})[0]
