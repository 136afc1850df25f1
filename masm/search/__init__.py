"""What is tried, what came of it and what is best: Optuna, without Ray, so that a search can be driven by anything."""

from masm.search.results import chosen_trial, complete, epochs_table, front, trials_table
from masm.search.sampling import make_sampler
from masm.search.space import suggest
from masm.search.study import SECOND_OBJECTIVE, Work, finish_study, open_study, sole_driver, study_name, study_storage
from masm.search.trials import epochs_of, own_trials, record_epochs, unfinished

__all__ = [
    "SECOND_OBJECTIVE",
    "Work",
    "chosen_trial",
    "complete",
    "epochs_of",
    "epochs_table",
    "finish_study",
    "front",
    "make_sampler",
    "open_study",
    "own_trials",
    "record_epochs",
    "sole_driver",
    "study_name",
    "study_storage",
    "suggest",
    "trials_table",
    "unfinished",
]
