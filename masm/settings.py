"""params.yaml as one frozen, validated tree: the only place that settings, addresses and secrets come from."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from masm.errors import UserError

Role = Literal["train", "validate", "test"]
Split = Literal["train", "val", "test"]
Method = Literal["masm", "effort", "lora", "layernorm", "full", "probe"]
Target = Literal["q", "k", "v", "proj", "fc1", "fc2", "fc1_g", "fc1_x"]
Severity = Literal["error", "warning"]
Share = Annotated[float, Field(gt=0, lt=1)]
ROLE_SPLITS: dict[Role, tuple[Split, ...]] = {"train": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The splits that the rows of a face table can have, by the role of its dataset."""


PHOTOGRAPHS = "faces"
"""The key of `licences` that is of the photographs of section `faces`."""


OPERATION = ("mlflow", "ray", "serving", "monitor")
"""Sections that say where the work runs and how a model is served and watched, not what comes out."""


class Section(BaseModel):
    """A part of params.yaml: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Faces(Section):
    """Where the real faces come from, and how the people are divided between the roles."""

    source: Literal["drawn", "photographs"]
    people: int = Field(default=0, ge=0, description="how many people to draw; photographs bring their own")
    photographs: int = Field(default=1, ge=1, description="drawn photographs of each person")
    folder: Path | None = Field(default=None, description="the folder of photographs")
    person_pattern: str = Field(default=r"([^_]+)", description="its first group, matched at the name's start")
    shares: dict[Role, Share] = Field(description="share of the people that each role gets")
    validation_share: Share = Field(description="share of the train people kept for choosing the checkpoint")

    @model_validator(mode="after")
    def _complete(self) -> Faces:
        if self.source == "drawn" and self.people < 1:
            raise ValueError("source 'drawn' needs people: a number of 1 or more")
        if self.source == "photographs" and self.folder is None:
            raise ValueError("source 'photographs' needs folder: the folder that holds them")
        if set(self.shares) != {"train", "validate", "test"} or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError("shares must give train, validate and test, and add up to 1")
        return self


class Crop(Section):
    """How a face becomes the square image that the detector sees; kept with the table and the model."""

    detector: Literal["given", "yunet", "cascade"]
    detector_weights: Path | None = Field(default=None, description="the YuNet file")
    working_size: int = Field(ge=32, description="longer side of the face box when it is forged, px")
    size: int = Field(ge=32, description="side of the crop, px")
    margin: float = Field(ge=1, le=3, description="crop side over face box side")
    alignment: Literal["square", "landmarks"] = Field(default="square", description="upright, or as the mean face")
    frames: int = Field(ge=1, description="jittered crops of each photograph")
    video_frames: int = Field(default=32, ge=1, description="frames of each video, spread evenly over all of it")

    @model_validator(mode="after")
    def _detector_suffices(self) -> Crop:
        if self.detector == "yunet" and self.detector_weights is None:
            raise ValueError("detector 'yunet' needs detector_weights: the path of its .onnx file")
        if self.detector == "cascade" and self.alignment == "landmarks":
            raise ValueError("alignment 'landmarks' needs detector 'yunet': the cascade gives no landmarks")
        return self


class ForgedDataset(Section):
    """A face table whose forgeries are made here from `faces`, all of it taken with one camera."""

    role: Role
    camera: str
    forgeries: tuple[str, ...] = Field(min_length=1)


class ImportedDataset(Section):
    """A face table from videos or crops that exist; `masm data import` writes the entry and the index."""

    role: Role
    index: Path = Field(description="what the import found, one row per video; a file that git tracks")
    digest: str = Field(description="of the index: by it DVC sees that other data were imported")
    splits: tuple[Split, ...] = Field(min_length=1, description="of the layout, that the dataset takes")

    @model_validator(mode="after")
    def _train_takes_no_test(self) -> ImportedDataset:
        if self.role == "train" and "test" in self.splits:
            raise ValueError("splits: a train dataset takes train and val alone")
        return self


def _dataset_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return "imported" if "index" in keys else "forged"


Dataset = Annotated[
    Annotated[ForgedDataset, Tag("forged")] | Annotated[ImportedDataset, Tag("imported")],
    Discriminator(_dataset_kind),
]

DATASET_KINDS: dict[str, type[Section]] = {"forged": ForgedDataset, "imported": ImportedDataset}


class Severities(Section):
    """What a finding of a check does: an error fails the validation, a warning is shown and kept."""

    table: Severity = Field(description="columns, values and counts of a face table")
    person: Severity = Field(description="a person in two places; a place is a role and a split")
    recording: Severity = Field(description="a real recording shown, or used for a forgery, in two places")
    video: Severity = Field(description="a video in two splits of its dataset")
    image: Severity = Field(description="the same image bytes in two places")
    near_duplicate: Severity = Field(description="images that look alike in two places")
    repetition: Severity = Field(description="images that look alike in two datasets of one place")
    confounding: Severity = Field(description="reals and fakes of a dataset from different sources")


class Checks(Section):
    """What the validate stage asks of every face table, and ingest of every dataset."""

    coverage: float = Field(ge=0, le=1, description="least share of a dataset's videos that give a face")
    min_frames: int = Field(ge=1, description="fewest frames of a video")
    min_videos: int = Field(ge=1, description="fewest videos of each class in a dataset")
    radius: int = Field(
        ge=0, le=16, description="of 64 bits, in which perceptual hashes of look-alikes differ at most"
    )
    separability: float = Field(
        gt=0.5, le=1, description="balanced accuracy from which a property alone tells reals from fakes"
    )
    severity: Severities


class Backbone(Section):
    """The pretrained vision transformer that is adapted."""

    name: str = Field(description="timm's name; 'starter' for the one that ships")
    weights: str = Field(description="'starter', 'hub', or the path of a .safetensors, .pth, .pt or .bin file")
    layout: Literal["timm", "fsfm"] | None = Field(
        default=None, description="whose a file is, where its keys do not say: pooling and normalisation follow"
    )

    @model_validator(mode="after")
    def _layout_of_a_file(self) -> Backbone:
        if self.layout is not None and self.weights in ("starter", "hub"):
            raise ValueError(f"layout is for files: leave it out with weights {self.weights!r}")
        return self


class Adapter(Section):
    """The method, and what of it is not searched; a method ignores what it does not have."""

    method: Method
    targets: tuple[Target, ...] = Field(min_length=1, description="of masm and lora")
    grouping: Literal["interleaved", "contiguous"] = Field(description="of masm")
    cache: Path | None = Field(default=None, description="a folder that keeps decompositions")


class Mask(Section):
    """The layer mask of masm, but for its threshold, which is searched."""

    kind: Literal["none", "static", "adaptive"]
    over: Literal["batch", "method"] = Field(description="whose gradients are compared")
    threshold_kind: Literal["quantile", "absolute"]
    interval: int = Field(ge=2, description="steps from one decision to the next")
    momentum: Share = Field(description="of the moving averages of the gradients")


LOSS_NUMBERS = ("triplet_weight", "margin", "alignment_weight", "uniformity_weight", "attribution_weight")
"""What of the losses can be searched."""
GREATEST_MARGIN = 2.0
"""No two points of the unit sphere are further apart."""
FROZEN = "probe's features are frozen, so that it has nothing to learn from losses over pairs and attribution"


class Losses(Section):
    """What is minimised beside the classification loss; one of its numbers may stand in `search.space` instead."""

    triplet: Literal["none", "batch_all", "batch_hard", "semi_hard", "soft_margin", "real_anchored"] = "none"
    labels: Literal["class", "method", "dataset"] = Field(
        default="class", description="fakes of one are alike to the losses over pairs; reals always are"
    )
    triplet_weight: float = Field(default=1.0, ge=0)
    margin: float = Field(
        default=0.2, ge=0, le=GREATEST_MARGIN, description="of the triplets' distances, on the unit sphere"
    )
    alignment_weight: float = Field(default=0.0, ge=0)
    uniformity_weight: float = Field(default=0.0, ge=0)
    attribution: Literal["none", "method", "dataset"] = Field(
        default="none", description="what an auxiliary head tells fakes apart by"
    )
    attribution_weight: float = Field(default=1.0, ge=0)

    def numbers(self) -> dict[str, float]:
        """The weights and the margin that these losses have: what can be searched."""
        absent = set()
        if self.triplet == "none":
            absent |= {"triplet_weight", "margin"}
        if self.triplet == "soft_margin":
            absent.add("margin")
        if self.attribution == "none":
            absent.add("attribution_weight")
        return {name: getattr(self, name) for name in LOSS_NUMBERS if name not in absent}

    def in_use(self) -> dict[str, Any]:
        """The settings of the losses whose weight is not 0."""
        numbers = self.numbers()
        weights = {name for name, value in numbers.items() if name != "margin" and value}
        names = set(weights)
        if "triplet_weight" in weights:
            names |= {"triplet", *({"margin"} & numbers.keys())}
        if "attribution_weight" in weights:
            names.add("attribution")
        if weights - {"attribution_weight"}:
            names.add("labels")
        return self.model_dump(include=names)


class Augmentation(Section):
    """Shares of the training images that are degraded besides, each by a strength of its own (`masm.data.augment`)."""

    blur: float = Field(default=0, ge=0, le=1)
    noise: float = Field(default=0, ge=0, le=1)
    jpeg: float = Field(default=0, ge=0, le=1)
    self_blends: float = Field(default=0, ge=0, le=1, description="of the fakes, replaced (`masm.data.selfblend`)")


class Optimisation(Section):
    """One run of the training loop."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2, description="images of a step, over all workers")
    lr: float = Field(gt=0, description="of what learns in the backbone")
    head_lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0, description="of the head; the backbone has none")
    clip_norm: float = Field(gt=0)
    augmentation: Augmentation = Augmentation()


class Uniform(Section):
    """A number between two bounds, on a plain or a logarithmic scale."""

    type: Literal["uniform", "loguniform"]
    lower: float
    upper: float

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if not self.lower < self.upper:
            raise ValueError(f"lower ({self.lower}) must be less than upper ({self.upper})")
        if self.type == "loguniform" and self.lower <= 0:
            raise ValueError(f"a logarithmic scale needs lower > 0, not {self.lower}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return self.lower, self.upper


class Choice(Section):
    """One of some values."""

    type: Literal["choice"]
    values: tuple[int | float, ...] = Field(min_length=1)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.values), max(self.values)


Range = Annotated[Uniform | Choice, Field(discriminator="type")]


class SearchSpace(Section):
    """The hyper-parameters that are searched; train takes the best of them and has no such keys itself.

    `hyperparameters_of` says which of them a method has, `Losses.numbers` which the losses have: the others are not
    searched, and 0. Of the losses' those are searched that have a range here.
    """

    rank: Choice
    subspaces: Choice
    mask_threshold: Range
    lambda_orth: Range
    lambda_spec: Range
    triplet_weight: Range | None = None
    margin: Range | None = None
    alignment_weight: Range | None = None
    uniformity_weight: Range | None = None
    attribution_weight: Range | None = None

    @model_validator(mode="after")
    def _within_bounds(self) -> SearchSpace:
        for name in type(self).model_fields:
            bounds = getattr(self, name)
            if bounds is not None and bounds.ends[0] < 0:
                raise ValueError(f"{name} cannot be below 0, as {bounds.ends[0]} is")
        if self.margin is not None and self.margin.ends[1] > GREATEST_MARGIN:
            raise ValueError(f"margin cannot be above {GREATEST_MARGIN:g}, as {self.margin.ends[1]} is")
        return self


def hyperparameters_of(method: str) -> tuple[str, ...]:
    """The hyper-parameters that a method of adaptation has."""
    of_masm = ("rank", "subspaces", "mask_threshold", "lambda_orth", "lambda_spec")
    return {"masm": of_masm, "lora": ("rank",)}.get(method, ())


class Search(Section):
    """The search; it fixes its own values, so that a change of train's does not repeat it."""

    trials: int = Field(ge=1)
    concurrent: int = Field(ge=1)
    frames: int = Field(ge=1, description="frames of each video that a trial sees")
    optimisation: Optimisation
    space: SearchSpace


class Train(Optimisation):
    """The final training run."""

    workers: int = Field(ge=1)
    max_failures: int = Field(ge=0, description="worker failures to recover from")
    false_positive_rate: Share = Field(description="on validation, at the thresholds for frames and for videos")
    calibration: Literal["temperature", "isotonic"] = Field(
        default="temperature", description="how scores become probabilities; isotonic needs many validation videos"
    )


Distortion = Literal[
    "saturation", "contrast", "blocks", "noise", "blur", "pixelation", "h264", "jpeg", "resize"
]  # fmt: skip
COLUMNS = r"split|family|track_id|source_clip|compression|width|height|profile|face_size|attributes\..+"
Slice = Annotated[str, Field(pattern=f"^({COLUMNS})$")]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if doubled := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{doubled[0]} stands twice: take one of them out")
    return values


class Robustness(Section):
    """Distortions of the test datasets (`masm.data.distort`), and how many frames the model sees under each."""

    kinds: Annotated[tuple[Distortion, ...], AfterValidator(_distinct)] = Field(
        default=(), description="h264 needs the extra `video`"
    )
    frames: int = Field(default=0, ge=0, description="of each dataset's method, about as many; 0: none at all")
    frames_per_video: int | None = Field(
        default=None, ge=1, description="of each video that is chosen; null: all of them"
    )


class Evaluate(Section):
    """Scoring of the test datasets."""

    workers: int = Field(
        default=1, ge=1, description="1: in the stage itself; more: Ray's, of one CPU each, or of one GPU where it has"
    )
    batch_size: int = Field(ge=1)
    slices: Annotated[tuple[Slice, ...], AfterValidator(_distinct)] = Field(
        default=(),
        description="columns of the face tables, attributes.NAME, or face_size (longer side of the box, px)",
    )
    robustness: Robustness = Robustness()
    draws: int = Field(ge=100, description="bootstrap draws")
    share_frames: int = Field(ge=0, description="frames of a dataset's method whose subspace shares are measured")
    embedding_frames: int = Field(ge=0, description="frames of a dataset's method whose embeddings are looked at")
    thumbnails: int = Field(
        default=0, ge=0, description="reals, and fakes, of the hardest errors whose pictures the report shows"
    )
    price_per_hour: float | None = Field(default=None, ge=0, description="of the machine, for the report's costs")


class Gate(Section):
    """What a model must show before it serves; null switches a condition off."""

    min_gain: float | None = Field(ge=0, description="the paired difference's interval lies above it")
    floors: dict[str, float | None] = Field(description="least video AUC of a test dataset: default, or by its name")
    max_drop: float | None = Field(ge=0, description="of any test dataset's video AUC under the champion's")
    max_robustness_drop: float | None = Field(ge=0, description="of the mean video AUC, distorted at level 3")
    max_calibration_error: float | None = Field(gt=0, description="of the videos' calibrated probabilities")
    max_latency_ms: float | None = Field(gt=0, description="of one crop, on the machine that runs the gate")
    clean_tree: bool = Field(description="code and settings must be those of the commit")

    @model_validator(mode="after")
    def _has_a_default(self) -> Gate:
        if "default" not in self.floors:
            raise ValueError("floors needs default: the least video AUC of a test dataset that it does not name")
        return self


class Candidate(Section):
    """One method of a comparison, with the hyper-parameters that it has."""

    lr: float = Field(gt=0)
    rank: int = Field(default=0, ge=0)
    subspaces: int = Field(default=0, ge=0)
    mask_threshold: float = Field(default=0.0, ge=0)
    lambda_orth: float = Field(default=0.0, ge=0)
    lambda_spec: float = Field(default=0.0, ge=0)


FileName = Annotated[str, Field(pattern=r"^[\w+-]+$")]


class Comparison(Section):
    """Several methods, trained as `train` says but for these values, each with several seeds."""

    seeds: int = Field(ge=2, description="runs of each method: seed, seed + 1, ...")
    table: Path = Field(description="the Markdown file that the comparison writes")
    methods: dict[Method, Candidate] = Field(min_length=1, description="the first is what the others are held against")
    losses: dict[FileName, Losses] = Field(
        default_factory=dict,
        description="each method with each of these; the first is what a method's others are held against",
    )

    @model_validator(mode="after")
    def _own_hyperparameters(self) -> Comparison:
        for method, candidate in self.methods.items():
            expected, given = set(hyperparameters_of(method)), candidate.model_fields_set - {"lr"}
            if foreign := given - expected:
                raise ValueError(f"{method} has no {min(foreign)}: take it out")
            if missing := expected - given:
                raise ValueError(f"{method} needs {min(missing)}: give it")
        return self

    @model_validator(mode="after")
    def _losses_have_what_learns(self) -> Comparison:
        if "probe" in self.methods and any(losses.in_use() for losses in self.losses.values()):
            raise ValueError(f"{FROZEN}: compare it without losses")
        return self


class TermWeights(Section):
    """Weights of the terms of pretraining's loss; that of the reconstruction is 1."""

    region: float = Field(default=0.007, ge=0, description="reconstruction of the covered region (FSFM)")
    alignment: float = Field(default=0.1, ge=0, description="of the visible patches with the whole face (FSFM)")
    energy: float = Field(default=0.5, ge=0, description="energies of the patches in bands of frequencies (ours)")


class Pretrain(Section):
    """How the shipped starter backbone is made (python -m pipelines.pretrain)."""

    workers: int = Field(default=1, ge=1)
    people: int = Field(ge=0, description="drawn")
    photographs: int = Field(ge=1, description="of each of them")
    folder: Path | None = Field(default=None, description="photographs of real faces, to be seen besides")
    detector_weights: Path | None = Field(default=None, description="the YuNet file that finds their faces")
    origin: str | None = Field(default=None, description="of the folder's photographs, and their terms: for the card")
    views: int = Field(default=16, ge=1, description="crops of each photograph of the folder")
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="images of a step, over all workers")
    lr: float = Field(gt=0)
    hidden: Share = Field(default=0.75, description="share of the patches that the encoder does not see")
    momentum: Share = Field(default=0.996, description="of the slow copy, at the start; it rises to 1")
    weights: TermWeights = TermWeights()

    @model_validator(mode="after")
    def _consistent(self) -> Pretrain:
        if not self.people and self.folder is None:
            raise ValueError("people 0 and no folder leave nothing to learn from: draw people, or name a folder")
        if self.folder is not None and (self.detector_weights is None or self.origin is None):
            raise ValueError(
                "folder needs detector_weights, YuNet's .onnx file, and origin: whose photographs these are"
            )
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of workers ({self.workers})")
        return self


class Monitor(Section):
    """When `masm monitor` says that a batch has drifted."""

    psi: float = Field(default=0.2, gt=0, description="population stability index of the scores that counts as drift")
    significance: Share = Field(default=0.01, description="share of batches without drift that are called drifted")


class Mlflow(Section):
    """Where runs are recorded and models registered."""

    tracking_uri: str = Field(description="MLFLOW_TRACKING_URI goes before it")
    artifacts: str = Field(description="a folder or URI; a server with its own store ignores it")
    experiment: str
    model: str = Field(description="the registered model's name")


class Ray(Section):
    """Where the work runs."""

    address: str | None = Field(default=None, description="a cluster; null starts one in the process")
    storage: str = Field(description="an absolute path or URI that every node reaches")


class Serving(Section):
    """The service of `masm serve`; the key that it asks for is MASM_API_KEY of the environment."""

    host: str = Field(default="127.0.0.1", description="0.0.0.0 lets other machines in: set MASM_API_KEY then")
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int = Field(default=1, ge=1, description="processes that hold the model; they share the processors")
    batch_size: int = Field(default=8, ge=1, description="crops of one pass, of several requests")
    batch_wait_ms: float = Field(default=5, ge=0, description="that a crop waits for others, at most")
    poll_seconds: float = Field(default=2, gt=0, description="between looks at the registry")
    max_bytes: int = Field(default=2**25, ge=1, description="of a request's body")
    max_pixels: int = Field(default=2**26, ge=1, description="of an image, or of a video's frame")
    max_video_seconds: float = Field(default=300, gt=0)
    requests_per_minute: int | None = Field(default=None, ge=1, description="of each client's address")
    media_root: Path | None = Field(
        default=None, description="the folder whose files a request may name; MASM_MEDIA_ROOT goes before it"
    )


def api_key() -> str | None:
    """MASM_API_KEY, which the service asks its clients for; None where it asks for none.

    Raises:
        UserError: it has letters that no client can send in a header.
    """
    key = os.environ.get("MASM_API_KEY") or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError("MASM_API_KEY has letters outside of printable ASCII, which cannot be sent: choose another.")
    return key


class Settings(Section):
    """All of params.yaml. Relative paths are seen from the file's own folder, `root`."""

    root: Path = Field(exclude=True)
    code: Path
    seed: int = Field(ge=0)
    faces: Faces
    crop: Crop
    datasets: dict[str, Dataset] = Field(min_length=1)
    licences: dict[str, str] = Field(
        default_factory=dict, description="terms of each dataset, and of `faces`' photographs: for the model card"
    )
    checks: Checks
    backbone: Backbone
    adapter: Adapter
    mask: Mask
    losses: Losses = Losses()
    search: Search
    train: Train
    evaluate: Evaluate
    gate: Gate
    compare: dict[FileName, Comparison]
    pretrain: Pretrain
    monitor: Monitor = Monitor()
    mlflow: Mlflow
    ray: Ray
    serving: Serving = Serving()

    @model_validator(mode="after")
    def _names_are_free(self) -> Settings:
        if taken := {"macro", "gain", "default", PHOTOGRAPHS} & set(self.datasets):
            raise ValueError(f"a dataset cannot be named {min(taken)}: metrics.json, gate.floors or licences uses it")
        return self

    @model_validator(mode="after")
    def _floors_are_of_test_datasets(self) -> Settings:
        if unknown := self.gate.floors.keys() - {"default", *self.with_role("test")}:
            raise ValueError(f"gate.floors names {min(unknown)}, which is no dataset with role test: correct it")
        return self

    @model_validator(mode="after")
    def _licences_are_of_data(self) -> Settings:
        if foreign := set(self.licences) - {PHOTOGRAPHS, *self.datasets}:
            raise ValueError(f"licences.{min(foreign)} is of no dataset: name one, or {PHOTOGRAPHS}")
        return self

    @model_validator(mode="after")
    def _searched_or_set(self) -> Settings:
        if twice := self.losses.model_fields_set & self.search.space.model_fields_set:
            raise ValueError(f"{min(twice)} stands in losses and in search.space: take it out of one of them")
        return self

    @model_validator(mode="after")
    def _losses_have_what_learns(self) -> Settings:
        if self.adapter.method == "probe" and (self.losses.in_use() or self.searched):
            raise ValueError(f"{FROZEN}: leave them off, or choose another adapter.method")
        return self

    @property
    def searched(self) -> list[str]:
        """The hyper-parameters that the search looks for."""
        of_losses = [name for name in self.losses.numbers() if getattr(self.search.space, name)]
        return [*hyperparameters_of(self.adapter.method), *of_losses]

    def with_role(self, role: Role) -> list[str]:
        """The names of the datasets with this role, in the order of params.yaml."""
        return [name for name, dataset in self.datasets.items() if dataset.role == role]

    def licence(self, dataset: str) -> str:
        """The terms of a dataset in words; forgeries have those of the faces that they are made from."""
        if dataset in self.licences:
            return self.licences[dataset]
        forged = isinstance(self.datasets[dataset], ForgedDataset)
        if forged and self.faces.source == "drawn":
            return "drawn here, of nobody"
        return self.licences.get(PHOTOGRAPHS, "not stated") if forged else "not stated"

    def table(self, dataset: str) -> Path:
        """The folder of a dataset's face table."""
        return self.root / "data" / self.datasets[dataset].role / dataset

    def path(self, value: str | Path) -> Path:
        """A path of params.yaml, made absolute."""
        return (self.root / Path(value).expanduser()).resolve()


def load_settings(path: Path | str = "params.yaml") -> Settings:
    """Read params.yaml; RAY_ADDRESS, MLFLOW_TRACKING_URI and MASM_MEDIA_ROOT go before what stands in it.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing or has a wrong value; all
            faults are named at once.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError:
        raise UserError(f"{path} cannot be read: run this where a params.yaml is, or give its path.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold sections such as `datasets:`; it holds {tree!r}.")
    if "root" in tree:
        raise UserError(f"{path}: root: not a setting; it is the folder of the file itself.")
    try:
        settings = Settings.model_validate({**tree, "root": path.resolve().parent})
    except ValidationError as error:
        raise UserError(_explain(path, error)) from None
    return _with_environment(settings)


def _with_environment(settings: Settings) -> Settings:
    """Addresses that the environment gives; a relative SQLite file is seen from params.yaml's folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.mlflow.tracking_uri
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{settings.path(uri.removeprefix('sqlite:///'))}"
    artifacts = settings.mlflow.artifacts
    if "://" not in artifacts:
        artifacts = str(settings.path(artifacts))
    storage = settings.ray.storage
    if "://" not in storage:
        storage = str(settings.path(storage))
    address = os.environ.get("RAY_ADDRESS") or settings.ray.address
    media = media_root() or (settings.serving.media_root and settings.path(settings.serving.media_root))
    return settings.model_copy(
        update={
            "mlflow": settings.mlflow.model_copy(update={"tracking_uri": uri, "artifacts": artifacts}),
            "ray": settings.ray.model_copy(update={"address": address, "storage": storage}),
            "serving": settings.serving.model_copy(update={"media_root": media}),
        }
    )


def media_root() -> Path | None:
    """MASM_MEDIA_ROOT: the folder whose files a request to a served model may name; None where it may name none."""
    folder = os.environ.get("MASM_MEDIA_ROOT")
    return Path(folder) if folder else None


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that stand for these sections and values: the name of the work in progress."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _explain(path: Path, error: ValidationError) -> str:
    """One line for each fault: where, what, and for an unknown key the nearest known one."""
    lines = []
    for fault in error.errors():
        location = tuple(str(part) for part in fault["loc"])
        kind = DATASET_KINDS.get(location[2]) if location[:1] == ("datasets",) and len(location) > 2 else None
        if kind is not None:  # pydantic's name for one of the two kinds of datasets is no key of the file
            location = (*location[:2], *location[3:])
        where = ".".join(location) or "the file"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{path}: {where}: unknown setting{_nearest(location, kind)}")
        elif fault["type"] == "missing":
            lines.append(f"{path}: {where}: this setting is missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {where}: {message} (it is {fault['input']!r})"[:300])
    return "\n".join(lines)


def _nearest(location: tuple[str, ...], kind: type[Section] | None) -> str:
    """A hint for a misspelt key; searched keys in train are named as such."""
    *parents, key = location
    if parents[:1] == ["train"] and key in SearchSpace.model_fields:
        return f"; {key} is searched: set its range in search.space"
    section: Any = Settings
    for parent in parents:
        field = getattr(section, "model_fields", {}).get(parent)
        section = field.annotation if field else kind
    near = difflib.get_close_matches(key, getattr(section, "model_fields", {}), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; remove it"
