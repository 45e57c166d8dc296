"""Many episodes at once: worker processes, replay after faults, accounting of an episode."""
