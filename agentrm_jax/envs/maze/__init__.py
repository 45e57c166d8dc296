"""Mazes in words."""
