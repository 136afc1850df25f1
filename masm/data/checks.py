"""Great Expectations over the face tables: is each one sound, and is nothing shared between splits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from masm.data.table import read_table
from masm.settings import ForgedDataset, Settings

CHECKED_COLUMNS = [
    "sample_id",
    "dataset",
    "split",
    "label",
    "method",
    "video_id",
    "sources",
    "identity",
    "width",
    "height",
    "sha256",
    "profile",
    "schema_version",
]
SPLITS = {"train": ["train", "val"], "validate": ["val"], "test": ["test"]}


@dataclass(frozen=True)
class Subject:
    """A table, and what is expected of it."""

    name: str
    rows: pd.DataFrame
    expectations: list[Any]


def run_checks(settings: Settings, docs: Path, progress: Callable[[str], None]) -> list[str]:
    """Check every face table, write the data docs, and return one sentence for each failed expectation.

    Args:
        settings: all of params.yaml.
        docs: folder of the data docs (index.html); replaced.
        progress: called with the name of what is checked next.
    """
    import great_expectations as gx  # its import takes seconds: here, so that only this stage pays
    from great_expectations.checkpoint import UpdateDataDocsAction

    tables = {name: _facts(settings, name) for name in settings.datasets}
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        context = gx.get_context(mode="file", project_root_dir=folder)
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_pandas("face tables")
        for subject in (*_table_subjects(settings, tables), *_leakage_subjects(tables)):
            progress(subject.name)
            asset = source.add_dataframe_asset(subject.name)
            suite = context.suites.add(gx.ExpectationSuite(subject.name, expectations=subject.expectations))
            definition = context.validation_definitions.add(
                gx.ValidationDefinition(
                    name=subject.name, data=asset.add_batch_definition_whole_dataframe("all"), suite=suite
                )
            )
            actions = [UpdateDataDocsAction(name="data docs")]
            checkpoint = context.checkpoints.add(
                gx.Checkpoint(name=subject.name, validation_definitions=[definition], actions=actions)
            )
            result = checkpoint.run(batch_parameters={"dataframe": subject.rows})
            failures += list(_explain(subject.name, result))
        shutil.rmtree(docs, ignore_errors=True)
        shutil.copytree(Path(folder) / "gx" / "uncommitted" / "data_docs" / "local_site", docs)
    return failures


def _facts(settings: Settings, dataset: str) -> pd.DataFrame:
    """A face table without its pixels, and with the place that its people must keep to."""
    rows = read_table(settings.table(dataset), CHECKED_COLUMNS).to_pandas()
    return rows.assign(place=settings.datasets[dataset].role + "/" + rows["split"])


def _table_subjects(settings: Settings, tables: dict[str, pd.DataFrame]) -> Iterator[Subject]:
    """Each dataset's frames, and its videos."""
    import great_expectations.expectations as gxe

    size = settings.crop.size
    for name, rows in tables.items():
        dataset = settings.datasets[name]
        found = sorted(set(rows["method"]) - {"real"})
        forgeries = dataset.forgeries if isinstance(dataset, ForgedDataset) else found
        pairs = [(0, "real"), *((1, forgery) for forgery in forgeries)]
        frames = [
            *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in CHECKED_COLUMNS),
            gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
            gxe.ExpectColumnValuesToBeInSet(column="dataset", value_set=[name]),
            gxe.ExpectColumnValuesToBeInSet(column="split", value_set=SPLITS[dataset.role]),
            gxe.ExpectColumnValuesToBeInSet(column="label", value_set=[0, 1]),
            gxe.ExpectColumnPairValuesToBeInSet(column_A="label", column_B="method", value_pairs_set=pairs),
            gxe.ExpectColumnDistinctValuesToContainSet(column="label", value_set=[0, 1]),
            gxe.ExpectColumnValuesToBeBetween(column="width", min_value=size, max_value=size),
            gxe.ExpectColumnValuesToBeBetween(column="height", min_value=size, max_value=size),
            gxe.ExpectColumnUniqueValueCountToBeBetween(column="profile", min_value=1, max_value=1),
        ]
        yield Subject(name, rows.drop(columns="sources"), [e for e in frames if getattr(e, "column", "") != "sources"])
        keys = ["split", "label", "method", "video_id"]
        videos = rows.groupby(keys).size().rename("frames").reset_index()
        counts = videos.groupby(["split", "label"]).size().rename("videos").reset_index()
        checks = settings.checks
        yield Subject(
            f"{name}, frames per video",
            videos,
            [gxe.ExpectColumnValuesToBeBetween(column="frames", min_value=checks.min_frames)],
        )
        yield Subject(
            f"{name}, videos per class",
            counts,
            [gxe.ExpectColumnValuesToBeBetween(column="videos", min_value=checks.min_videos)],
        )


def _leakage_subjects(tables: dict[str, pd.DataFrame]) -> Iterator[Subject]:
    """People, videos (and what they were made from) and image bytes: each in one place only, over all datasets."""
    import great_expectations.expectations as gxe

    rows = pd.concat(tables.values(), ignore_index=True)
    sources = rows.explode("sources")[["sources", "place"]].rename(columns={"sources": "video"})
    kinds = {
        "person": rows[["identity", "place"]].rename(columns={"identity": "person"}),
        "video": pd.concat([rows[["video_id", "place"]].rename(columns={"video_id": "video"}), sources]),
        "image": rows[["sha256", "place"]].rename(columns={"sha256": "image"}),
    }
    for kind, pairs in kinds.items():
        shared = pairs.groupby(kind)["place"].agg(lambda places: " and ".join(sorted(set(places)))).reset_index()
        shared["places"] = shared["place"].str.count(" and ") + 1
        # The value itself stands in the failure, because the column under test carries it.
        shared["leak"] = (
            shared[kind]
            .where(shared["places"] > 1, "")
            .str.cat(shared["place"].where(shared["places"] > 1, ""), sep=" ")
        )
        yield Subject(
            f"leakage by {kind}",
            shared[[kind, "place", "leak"]],
            [gxe.ExpectColumnValuesToBeInSet(column="leak", value_set=[" "])],
        )


def _explain(subject: str, result: Any) -> Iterator[str]:
    """One sentence for each failed expectation, with examples of what was found."""
    for validation in result.run_results.values():
        for outcome in validation.results:
            if outcome.success:
                continue
            config = outcome.expectation_config
            if outcome.exception_info and outcome.exception_info.get("raised_exception"):
                yield f"{subject}: {config.type} could not be run: {outcome.exception_info['exception_message']}"
                continue
            kwargs = {key: value for key, value in config.kwargs.items() if key != "batch_id"}
            found = outcome.result.get("partial_unexpected_list") or outcome.result.get("observed_value")
            examples = sorted({str(value) for value in found})[:5] if isinstance(found, list) else found
            yield f"{subject}: {config.type} {kwargs} failed; found {examples}"
