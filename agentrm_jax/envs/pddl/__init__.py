"""PDDL: planning problems in words."""
