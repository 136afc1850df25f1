"""What a long stage tells MLflow while it runs: a journal on disk, and a process that brings it to MLflow.

The stage only appends to the journal, so that it never waits for a server. The sender makes MLflow's runs what the
journal says: it asks what a run has before it sends, and sends points with the time at which they were recorded, so
that nothing is there twice, whoever was killed at which moment. A journal is removed when all of it is in MLflow.
"""

from masm.tracking.journal import journal_path, unsent
from masm.tracking.recorder import Recorder, journal_roots, send_unsent, stage_recorder

__all__ = ["Recorder", "journal_path", "journal_roots", "send_unsent", "stage_recorder", "unsent"]
