"""What actors on any node need: the folder of the run, and answers of other actors with the errors that these raised."""

import os
import socket
from collections.abc import Awaitable
from typing import Any

import ray

from agentrm_jax.types import UserError

PATIENCE = 120.0  # seconds that an actor may take to find a node and to start
PAUSE = 1.0  # seconds before something is asked for again


class NoRoom(Exception):
    """What an engine needs is not there, or not any more: its tasks are for others."""


def enter(folder: str) -> None:
    """Works in the folder where the run was started, as paths of its config say.

    Raises:
      UserError: this node does not see it.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"node {socket.gethostname()} does not see {folder} ({error.strerror}); start the run in a folder, and with "
            "models and data, on a disk that all nodes see at the same place"
        ) from error


async def answer(reference: Awaitable[Any]) -> Any:
    """What an actor returns, or raises.

    Raises:
      ray.exceptions.RayActorError: the actor, or its node, is gone.
    """
    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
