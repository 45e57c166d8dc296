"""Other programs are processes that answer over a pipe, sleep unless asked, and whose end is told in one line."""

import dataclasses
import sys
import time
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.peers import GENERATORS, SCORERS, PeerDied

WORKER = """
import os, sys
sys.path.insert(0, {workers!r})
import pipe
say = pipe.answers()
print("a library talks")
def double(x): return {{"twice": 2 * x}}
def leave(): print("out of memory", file=sys.stderr); os._exit(9)
def fail(): raise ValueError("too long")
pipe.serve(say, {{"double": double, "leave": leave, "fail": fail}}, version="1")
"""


@pytest.fixture
def peer(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(workers=str(Path(peers.__file__).with_name("workers"))))
    with peers.running([peers.Peer("it", [sys.executable, str(script)], tmp_path / "logs" / "it.log")]) as [it]:
        yield it


def _state(peer):
    return Path(f"/proc/{peer._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_peer_answers_and_is_stopped_in_between(peer):
    for x in (2, 3):
        assert peer.ask(do="double", x=x) == {"twice": 2 * x}
        deadline = time.monotonic() + 5
        while _state(peer) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _state(peer) == "T"
    assert peer.seconds_to_start > 0


def test_the_end_of_a_peer_is_told_with_its_last_words(peer):
    with pytest.raises(PeerDied, match=r"its process ended: out of memory \(see .*it\.log\)"):
        peer.ask(do="leave")
    with pytest.raises(PeerDied, match="out of memory"):
        peer.ask(do="double", x=1)


def test_an_error_of_a_worker_is_told(peer):
    with pytest.raises(PeerDied, match="ValueError: too long"):
        peer.ask(do="fail")


def test_why_a_peer_is_skipped_is_said(monkeypatch, tmp_path):
    peers.missing.cache_clear()
    kind = GENERATORS[0]
    monkeypatch.delenv(kind.variable, raising=False)
    assert kind.missing() == "AGENTRM_VLLM_PYTHON names no Python with vllm"
    with pytest.raises(PeerDied, match="names no Python"):
        peers.start(kind, tmp_path, tmp_path)
    peers.missing.cache_clear()
    monkeypatch.setenv(kind.variable, str(tmp_path / "none"))
    assert "No such file" in kind.missing()
    peers.missing.cache_clear()
    monkeypatch.setenv(kind.variable, sys.executable)
    assert "No module named 'no_such_module'" in dataclasses.replace(kind, modules=("no_such_module",)).missing()
    peers.missing.cache_clear()


def test_every_kind_has_a_variable_and_a_script(tmp_path):
    options = {"room": 64, "sequences": 2, "sequence_room": 32}
    for kind in (*GENERATORS, *SCORERS):
        assert kind.variable in peers.VARIABLES
        assert (Path(peers.__file__).with_name("workers") / kind.script).exists()
        assert kind.job(tmp_path, options)
