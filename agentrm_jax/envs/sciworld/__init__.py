"""ScienceWorld: a school laboratory."""
