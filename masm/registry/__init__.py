"""MLflow: what is recorded of a run, the versions of the registered model, and which of them is champion.

Alias `champion` is the version that serves; `challenger` is the other one of the last comparison. A version
that was champion keeps tag `previous_champion`, whose value is the time at which it was replaced (ISO 8601,
UTC), so that the latest of them is the one to roll back to.
"""

from masm.registry.lock import Lock
from masm.registry.promotions import (
    Details,
    Promotion,
    former_champion,
    move,
    notice,
    promoting,
    register,
    settle,
    settled,
    show,
    trail,
)
from masm.registry.runs import Dataset, LoggedRun, Record, log_decision, log_run
from masm.registry.store import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION, answering, connect
from masm.registry.versions import (
    Version,
    champion,
    download,
    find_version,
    label,
    list_versions,
    recorded,
    report_of,
    resolve,
    stored_detector,
)
from masm.serving.manifest import DamagedModel

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS_CHAMPION",
    "DamagedModel",
    "Dataset",
    "Details",
    "Lock",
    "LoggedRun",
    "Promotion",
    "Record",
    "Version",
    "answering",
    "champion",
    "connect",
    "download",
    "find_version",
    "former_champion",
    "label",
    "list_versions",
    "log_decision",
    "log_run",
    "move",
    "notice",
    "promoting",
    "recorded",
    "register",
    "report_of",
    "resolve",
    "settle",
    "settled",
    "show",
    "stored_detector",
    "trail",
]
