"""Expert episodes of a config's tasks, kept in a folder."""

import pytest

from agentrm_jax.data.demonstrations import expert_trajectories
from agentrm_jax.envs.catalogue import Catalogue
from agentrm_jax.types import UserError


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "experts").write_text("")
    with pytest.raises(UserError, match=r"config\.experts=.*experts is a file; name a folder"):
        expert_trajectories({}, Catalogue({}), tmp_path / "experts")
