"""The job server of a cluster: who talks to it, and what names a job there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from masm.cluster import first_line, knock, refused
from masm.environment import LOCK
from masm.errors import UserError

ANSWER_SECONDS = 60.0
"""That a job server may take to answer a question."""


class Client(JobSubmissionClient):
    """Ray's, which itself would wait for ever where a connection goes silent."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        if method == "GET":  # an upload may take its time
            options.setdefault("timeout", ANSWER_SECONDS)
        return super()._do_request(method, endpoint, **options)


@dataclass(frozen=True)
class Submitted:
    """A job on a cluster.

    Attributes:
        number: Ray's submission id.
        address: of the cluster's job server.
    """

    number: str
    address: str

    @property
    def how(self) -> str:
        """How to follow it and how to stop it, in one line."""
        return (
            f"follow it: masm submit --follow {self.number} --address {self.address}; "
            f"stop it: ray job stop {self.number} --address {self.address}"
        )


def connect(address: str) -> Client:
    """The job server of a cluster.

    Args:
        address: its own, or HOST:PORT of the cluster's head.

    Raises:
        UserError: none answers there, it refuses the token, or the cluster has another Ray.
    """
    try:
        knock(address)
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray's client puts RAY_ADDRESS before its argument
        client = Client(address)
    except AuthenticationError:
        raise UserError(refused(address)) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # requests' errors are OSErrors
        raise UserError(
            f"no Ray cluster takes jobs at {address} ({first_line(error)}): start one (`ray start --head`), or give "
            "--address http://HOST:8265, the port of its dashboard."
        ) from None
    if client._server_ray_version != ray.__version__:
        raise UserError(
            f"the cluster at {address} runs Ray {client._server_ray_version}, this is Ray {ray.__version__} of "
            f"{LOCK}: build the cluster's image from this lock, or make this environment from the cluster's."
        )
    return client
