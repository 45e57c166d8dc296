"""Files of a model folder that are not what they should be: one line that names the file and the remedy."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from agentrm_jax.models.folder import open_safetensors, read_object, refuse_pointer
from agentrm_jax.types import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4976698672\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path):
    """Two shards with their index."""
    for i, name in enumerate(SHARDS):
        save_file({f"w{i}": np.arange(6, dtype=np.float32).reshape(2, 3)}, tmp_path / name)
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(SHARDS)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_shards_are_read_as_one_source(folder):
    source = open_safetensors(folder)
    assert source.shapes == {"w0": (2, 3), "w1": (2, 3)}
    np.testing.assert_array_equal(source.read("w1", (slice(1, 2), slice(0, 2))), [[3, 4]])


def test_git_lfs_pointers_are_named_together_with_the_command_that_fetches_them(folder):
    for name in (*SHARDS, "tokenizer.json"):
        (folder / name).write_text(POINTER)
    with pytest.raises(UserError) as error:
        open_safetensors(folder)
    assert all(name in one_line(error) for name in (*SHARDS, "tokenizer.json", "git lfs pull", str(folder)))
    with pytest.raises(UserError, match="git-lfs"):
        read_object(folder / "tokenizer.json")


def test_a_pointer_that_is_not_needed_is_no_obstacle(folder):
    (folder / "consolidated.safetensors").write_text(POINTER)
    assert len(open_safetensors(folder).shapes) == 2
    refuse_pointer(folder / "not there", folder)


@pytest.mark.parametrize("size", [0, 4, 40, 80])
def test_a_truncated_shard_is_named(folder, size):
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=f"{SHARDS[1]} is no whole safetensors file .*download it again"):
        open_safetensors(folder)


def test_all_shards_that_are_missing_are_named(folder):
    for name in SHARDS:
        (folder / name).unlink()
    with pytest.raises(UserError, match=f"has no {SHARDS[0]}, {SHARDS[1]}; download them again"):
        open_safetensors(folder)


@pytest.mark.parametrize(
    "text", ["[]", "7", "{}", '{"weight_map": []}', '{"weight_map": {"w": 3}}', "{", "", "[" * 10**5]
)
def test_an_index_without_its_map_is_named(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json (holds|is|has no weight_map)") as error:
        open_safetensors(folder)
    one_line(error)


@pytest.mark.parametrize(
    ("text", "named"), [("", "is empty"), ("[]", "a JSON list"), ("3", "a JSON int"), ("{'a': 1}", "is no JSON")]
)
def test_a_file_without_an_object_is_named(tmp_path, text, named):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"config.json .*{named}"):
        read_object(tmp_path / "config.json")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{\x00")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        read_object(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"generation\.json cannot be read: No such file"):
        read_object(tmp_path / "generation.json")


def test_quantised_integers_are_no_weights(tmp_path):
    save_file({"w": np.zeros((2, 2), np.int8), "x": np.zeros(2, np.float16)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"other types than BF16, F16, F32, F64: w \(I8\)"):
        open_safetensors(tmp_path)
