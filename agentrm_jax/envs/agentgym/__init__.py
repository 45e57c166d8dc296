"""Environments behind AgentGym servers."""
