"""Jobs: a stage that runs on a Ray cluster far from here, submitted over HTTP and followed from here."""

from masm.jobs.client import Submitted, connect
from masm.jobs.following import follow
from masm.jobs.submission import submit

__all__ = ["Submitted", "connect", "follow", "submit"]
