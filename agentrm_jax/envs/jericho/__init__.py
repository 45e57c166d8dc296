"""Jericho: text adventures."""
