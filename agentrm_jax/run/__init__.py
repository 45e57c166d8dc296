"""Runs: their folder, their stages, their record, their log."""
