"""params.yaml as one frozen, validated tree: the only place that settings, addresses and secrets come from."""

from masm.settings.data import (
    ROLE_SPLITS,
    Dataset,
    Faces,
    ForgedDataset,
    ImportedDataset,
    Role,
    Severities,
    Severity,
    Split,
)
from masm.settings.evaluation import COLUMNS, Distortion, Gate, Robustness
from masm.settings.loading import load_settings
from masm.settings.method import FROZEN, LOSS_NUMBERS, Losses, MaskKind, hyperparameters_of
from masm.settings.operation import OPERATION, Mlflow, Ray, Serving, api_key, job_environment, job_server, media_root
from masm.settings.search import Search, SearchSpace, Uniform, study_url
from masm.settings.section import fingerprint
from masm.settings.training import Candidate, Comparison, Optimisation, Pretrain
from masm.settings.tree import Settings
from masm.settings.urls import UNREADABLE, secrets_of, without_secrets

__all__ = [
    "COLUMNS",
    "FROZEN",
    "LOSS_NUMBERS",
    "OPERATION",
    "ROLE_SPLITS",
    "UNREADABLE",
    "Candidate",
    "Comparison",
    "Dataset",
    "Distortion",
    "Faces",
    "ForgedDataset",
    "Gate",
    "ImportedDataset",
    "Losses",
    "MaskKind",
    "Mlflow",
    "Optimisation",
    "Pretrain",
    "Ray",
    "Robustness",
    "Role",
    "Search",
    "SearchSpace",
    "Serving",
    "Settings",
    "Severities",
    "Severity",
    "Split",
    "Uniform",
    "api_key",
    "fingerprint",
    "hyperparameters_of",
    "job_environment",
    "job_server",
    "load_settings",
    "media_root",
    "secrets_of",
    "study_url",
    "without_secrets",
]
