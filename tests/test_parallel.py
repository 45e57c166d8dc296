"""Where a process is told that it belongs to a distributed run."""

import pytest

from agentrm_jax.parallel import launcher
from agentrm_jax.types import UserError

STEP = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({}, None),
        (STEP, {}),
        (STEP | {"SLURM_NTASKS": "1"}, None),  # srun --pty
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}, None),  # a batch script without srun
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"JAX_COORDINATOR_ADDRESS": "auto"}, {}),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0},
        ),
    ],
)
def test_a_process_joins_others_where_a_launcher_says_so(env, told):
    assert launcher(env) == told


@pytest.mark.parametrize("more", [{}, {"JAX_NUM_PROCESSES": "2"}, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}])
def test_a_variable_that_is_missing_is_named(more):
    with pytest.raises(UserError, match=r"JAX_(NUM_PROCESSES|PROCESS_ID) as a number"):
        launcher({"JAX_COORDINATOR_ADDRESS": "a:1"} | more)
