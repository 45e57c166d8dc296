"""Subcommands of `python -m agentrm_jax.envs`."""
