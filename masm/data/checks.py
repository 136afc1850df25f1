"""Is each face table sound, is nothing shared between places, and does any dataset measure its sources?

Great Expectations runs the checks and writes them as pages to browse. What takes more than one table or more than one
row to see is found first (`masm.data.leakage`, `masm.data.confounding`), and is expected to be nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from masm.data.confounding import COLUMNS as SOURCE_COLUMNS
from masm.data.confounding import confounds
from masm.data.findings import Finding
from masm.data.index import forged_methods
from masm.data.leakage import HEX, look_alikes, read_frames, same_images, shared_names
from masm.data.table import read_table
from masm.settings import ROLE_SPLITS, ForgedDataset, ImportedDataset, Settings, Severities

COMPLETE = ["sample_id", "dataset", "split", "label", "method", "video_id", "sources", "identity", "source_clip",
            "compression", "width", "height", "sha256", "phash", "profile", "schema_version"]  # fmt: skip
"""Columns of the face table that every row must fill."""
EXAMPLES = 5
"""Of the values that failed an expectation, in its sentence; the pages have more."""
OVER_ALL = [check for check in Severities.model_fields if check != "table"]
"""Checks that look at several rows or tables at once."""
GX_SEVERITIES = {"error": "critical", "warning": "warning"}
ALL = "all datasets"


def run_checks(settings: Settings, docs: Path, progress: Callable[[str], None]) -> list[Finding]:
    """Check every face table, write the pages, and return what was found.

    Args:
        settings: all of params.yaml.
        docs: folder of the pages (index.html); replaced.
        progress: called with what is done next.
    """
    shutil.rmtree(docs, ignore_errors=True)
    context = _context(docs)
    findings = []
    for dataset in settings.datasets:  # one table in memory at a time
        progress(dataset)
        result = _validate(context, dataset, _rows(settings, dataset), _table_expectations(settings, dataset))
        findings += [_finding(settings, "table", dataset, text) for text in _explain(result)]
    findings += [*_confounded(settings), *_leaks(settings, progress)]
    progress("pages")
    _validate(context, ALL, _by_check(findings), _nothing_expected(settings))
    context.build_data_docs()
    return findings


def methods_of(settings: Settings, dataset: str) -> list[str]:
    """The forgeries that a dataset may hold: those that params.yaml makes, or those that its import found."""
    entry = settings.datasets[dataset]
    if isinstance(entry, ForgedDataset):
        return list(entry.forgeries)
    assert isinstance(entry, ImportedDataset)
    return forged_methods(settings.path(entry.index))


def _context(docs: Path) -> Any:
    """All in memory but the pages, and nothing sent anywhere."""
    import great_expectations as gx  # its import takes seconds: here, so that only this stage pays
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    site = {
        "class_name": "SiteBuilder",
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        data_docs_sites={"face tables": site},
        analytics_enabled=False,
        progress_bars={"globally": False},
    )
    return gx.get_context(project_config=config, mode="ephemeral")


def _validate(context: Any, name: str, rows: pd.DataFrame, expectations: list[Any]) -> Any:
    """Run expectations; rows, suite and result get a page each, under this name."""
    import great_expectations as gx

    data = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=data, suite=suite))
    return definition.run(batch_parameters={"dataframe": rows})


def _rows(settings: Settings, dataset: str) -> pd.DataFrame:
    """A face table without its pixels, and with the counts that are asked for."""
    rows = read_table(settings.table(dataset), COMPLETE).to_pandas()
    video = ["split", "label", "method", "video_id"]
    frames = rows.groupby(video, dropna=False)["sample_id"].transform("size")
    videos = rows[video].drop_duplicates().value_counts(["split", "label"], dropna=False).rename("videos per class")
    rows = rows.join(videos, on=["split", "label"])
    return rows.assign(**{"frames per video": frames, "sources": rows["sources"].str.len()})


def _table_expectations(settings: Settings, dataset: str) -> list[Any]:
    import great_expectations.expectations as gxe

    role, size, checks = settings.datasets[dataset].role, settings.crop.size, settings.checks
    methods = [(0, "real"), *((1, method) for method in methods_of(settings, dataset))]
    severity = GX_SEVERITIES[checks.severity.table]
    expected = [
        *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in COMPLETE),
        gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
        gxe.ExpectColumnValuesToBeInSet(column="dataset", value_set=[dataset]),
        gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(ROLE_SPLITS[role])),
        gxe.ExpectColumnValuesToBeInSet(column="label", value_set=[0, 1]),
        gxe.ExpectColumnPairValuesToBeInSet(column_A="label", column_B="method", value_pairs_set=methods),
        gxe.ExpectColumnDistinctValuesToContainSet(column="label", value_set=[0, 1]),
        gxe.ExpectColumnValuesToBeBetween(column="width", min_value=size, max_value=size),
        gxe.ExpectColumnValuesToBeBetween(column="height", min_value=size, max_value=size),
        *(gxe.ExpectColumnValuesToMatchRegex(column=column, regex=regex) for column, regex in HEX.items()),
        gxe.ExpectColumnUniqueValueCountToBeBetween(column="profile", min_value=1, max_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="frames per video", min_value=checks.min_frames),
        gxe.ExpectColumnValuesToBeBetween(column="videos per class", min_value=checks.min_videos),
    ]
    for expectation in expected:
        expectation.severity = severity
    return expected


def _explain(result: Any) -> Iterator[str]:
    """One sentence for each failed expectation, with examples of what was found."""
    for outcome in result.results:
        if outcome.success:
            continue
        config = outcome.expectation_config
        if outcome.exception_info and outcome.exception_info.get("raised_exception"):
            yield f"{config.type} could not be run: {outcome.exception_info['exception_message']}"
            continue
        asked = {key: value for key, value in config.kwargs.items() if key not in ("batch_id", "severity")}
        found = outcome.result.get("partial_unexpected_list") or outcome.result.get("observed_value")
        examples = sorted({str(value) for value in found})[:EXAMPLES] if isinstance(found, list) else found
        yield f"{config.type} {asked} failed; found {examples}"


def _confounded(settings: Settings) -> Iterator[Finding]:
    for dataset in settings.datasets:
        rows = read_table(settings.table(dataset), SOURCE_COLUMNS)
        for sign in confounds(rows, settings.checks.separability):
            yield _finding(settings, "confounding", dataset, sign)


def _leaks(settings: Settings, progress: Callable[[str], None]) -> Iterator[Finding]:
    progress("leakage by name")
    found = shared_names(settings)
    frames = read_frames(settings)
    found["image"] = same_images(frames)
    found |= look_alikes(
        frames, settings.checks.radius, lambda done, total: progress(f"near-duplicates, round {done} of {total}")
    )
    for check, texts in found.items():
        yield from (_finding(settings, check, ALL, text) for text in texts)


def _finding(settings: Settings, check: str, dataset: str, text: str) -> Finding:
    return Finding(check, getattr(settings.checks.severity, check), dataset, text)


def _by_check(findings: list[Finding]) -> pd.DataFrame:
    """A column for each check over several rows or tables, with what it found."""
    columns = {
        check: pd.Series([f"{finding.dataset}: {finding.text}" for finding in findings if finding.check == check])
        for check in OVER_ALL
    }
    return pd.DataFrame(columns, dtype=object)


def _nothing_expected(settings: Settings) -> list[Any]:
    """For each of these checks, that it found nothing."""
    import great_expectations.expectations as gxe

    severities = {check: GX_SEVERITIES[getattr(settings.checks.severity, check)] for check in OVER_ALL}
    return [gxe.ExpectColumnValuesToBeNull(column=check, severity=severities[check]) for check in OVER_ALL]
