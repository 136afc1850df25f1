"""All of params.yaml."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from masm.settings.data import PHOTOGRAPHS, Checks, Crop, Dataset, Faces, ForgedDataset, Role
from masm.settings.evaluation import Evaluate, Gate
from masm.settings.method import FROZEN, PAIR_WEIGHTS, Adapter, Backbone, Losses, Mask, hyperparameters_of
from masm.settings.operation import Mlflow, Monitor, Ray, Serving
from masm.settings.search import Search
from masm.settings.section import FileName, Section
from masm.settings.training import Comparison, Pretrain, Train


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
    def _rate_is_searched_or_set(self) -> Settings:
        searched = self.search.space.lr is not None
        for where, optimisation in (("train", self.train), ("search.optimisation", self.search.optimisation)):
            if searched and optimisation.lr is not None:
                raise ValueError(f"lr stands in {where} and in search.space: take it out of one of them")
            if not searched and optimisation.lr is None:
                raise ValueError(f"{where}.lr is missing: give it, or a range in search.space")
        if searched and self.adapter.method == "probe":
            raise ValueError("probe has nothing that lr moves: take it out of search.space, and set it in its places")
        return self

    @model_validator(mode="after")
    def _mask_is_searched_or_set(self) -> Settings:
        if (self.search.space.mask_kind is None) == (self.mask.kind is None):
            twice = "stand both" if self.mask.kind else "are both missing"
            raise ValueError(f"mask.kind and search.space.mask_kind {twice}: give one of them")
        for name, comparison in self.compare.items():
            candidate = comparison.methods.get("masm")
            if candidate is not None and self.mask.kind is None and candidate.mask_kind is None:
                raise ValueError(f"compare.{name}.methods.masm needs mask_kind, where mask.kind is searched: give it")
        return self

    @model_validator(mode="after")
    def _conditions_are_searched(self) -> Settings:
        space = self.search.space
        for name in self.searched:
            if foreign := [parent for parent in space.bounds(name).when if parent not in self.searched]:
                raise ValueError(
                    f"search.space.{name}.when names {foreign[0]}, which is not searched with {self.adapter.method}: "
                    "take it out"
                )
        return self

    @model_validator(mode="after")
    def _losses_have_what_learns(self) -> Settings:
        if self.adapter.method == "probe" and (self.losses.in_use() or self.searched):
            raise ValueError(f"{FROZEN}: leave them off, or choose another adapter.method")
        return self

    @model_validator(mode="after")
    def _pairs_are_of_a_whole_batch(self) -> Settings:
        weights = PAIR_WEIGHTS & {*self.losses.in_use(), *self.searched}
        for where, optimisation in (("train", self.train), ("search.optimisation", self.search.optimisation)):
            if weights and optimisation.accumulation > 1:
                raise ValueError(
                    f"{where}.accumulation is {optimisation.accumulation}, but the losses over pairs "
                    f"({min(weights)}) see a whole batch: set it to 1, and activation_checkpointing to true, which "
                    "saves memory and changes no result"
                )
        return self

    @property
    def searched(self) -> list[str]:
        """The hyper-parameters that the search looks for."""
        method, given = self.adapter.method, self.search.space.given
        of_mask = [name for name in ("mask_kind",) if name in given and method == "masm"]
        of_run = [name for name in ("lr",) if name in given]
        of_losses = [name for name in self.losses.numbers() if name in given]
        return [*hyperparameters_of(method), *of_mask, *of_run, *of_losses]

    @property
    def study_storage(self) -> str:
        """The SQLAlchemy URL of the studies, where the environment does not name another."""
        return self.search.study.storage or f"sqlite:///{self.ray.storage}/studies.db"

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

    def database(self, url: str) -> str:
        """A URL of params.yaml or of the environment; a relative SQLite file is made absolute."""
        relative = url.startswith("sqlite:///") and not url.startswith(("sqlite:////", "sqlite:///:memory:"))
        return f"sqlite:///{self.path(url.removeprefix('sqlite:///'))}" if relative else url
