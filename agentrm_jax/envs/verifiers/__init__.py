"""Environments of verifiers, with our policy in one of their seats."""
