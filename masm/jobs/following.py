"""A job that runs on a cluster, followed from here: its log as it comes, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import ClientError
from ray.job_submission import JobDetails, JobStatus

from masm.cluster import first_line
from masm.errors import UserError
from masm.jobs.client import Client, Submitted, connect

END_SECONDS = 30.0
"""From a job's last words to its status, and the other way round."""
LOOK_SECONDS = 15.0
"""Between looks at a job's status, as a connection that goes silent ends no log."""
MESSAGE = 2000
"""Letters of Ray's own words that are shown."""


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        status: SUCCEEDED, FAILED or STOPPED.
        exit_code: 0, or the stage's: 1 a check failed, or the job broke or was stopped; 2 the user's mistake.
        why: what Ray says of a job that broke outside of its stage, as where its environment could not be made.
        stage: that ran.
        workspace: where it was submitted.
    """

    status: str
    exit_code: int
    why: str
    stage: str
    workspace: str


def follow(job: Submitted, show: Callable[[str], None]) -> Ended:
    """Show a job's log from its beginning until it ends.

    Ctrl-C here, and a lost connection, leave the job running.

    Args:
        job: which.
        show: is given the log as it comes.

    Raises:
        UserError: there is no such job, or the connection was lost.
    """
    client = connect(job.address)
    try:
        client.get_job_info(job.number)
    except (OSError, RuntimeError) as error:
        if "status code 404" not in str(error):
            raise _lost(job, error) from None
        raise UserError(
            f"there is no job {job.number} at {job.address}: `ray job list --address {job.address}`."
        ) from None
    try:
        asyncio.run(_watch(client, job.number, show))
        deadline = time.monotonic() + END_SECONDS
        while not (details := client.get_job_info(job.number)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
    except (OSError, RuntimeError, ClientError) as error:
        raise _lost(job, error) from None
    return _ended(job, details)


def _lost(job: Submitted, error: Exception) -> UserError:
    return UserError(
        f"the connection to {job.address} was lost ({first_line(error)}); the job, if it runs, goes on; {job.how}."
    )


async def _watch(client: Client, number: str, show: Callable[[str], None]) -> None:
    """Show a job's log until it ends, or until the job has ended and no more comes."""
    tail = asyncio.create_task(_tail(client, number, show))
    while not (await asyncio.wait([tail], timeout=LOOK_SECONDS))[0]:
        details = await asyncio.to_thread(client.get_job_info, number)
        if details.status.is_terminal() and not (await asyncio.wait([tail], timeout=END_SECONDS))[0]:
            tail.cancel()
            show(f"\nthe log's end did not come: ray job logs {number} --address {client.get_address()}\n")
            return
    await tail


async def _tail(client: Client, number: str, show: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(number):
        show(text)


def _ended(job: Submitted, details: JobDetails) -> Ended:
    if not details.status.is_terminal():
        raise UserError(f"the cluster at {job.address} sends no more of the log, the job goes on; {job.how}.")
    known, code = details.metadata or {}, details.driver_exit_code
    why = "" if code is not None or details.status is JobStatus.STOPPED else (details.message or "")[:MESSAGE]
    # A signal that ended the driver is a negative code; the shell's own, such as 127, are no stage's.
    code = code if code in (0, 1, 2) else 1
    return Ended(details.status.value, code, why, known.get("masm.stage", ""), known.get("masm.workspace", ""))
