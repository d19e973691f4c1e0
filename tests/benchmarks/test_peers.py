"""Other programs compute what ours does on the same parameters; a comparison checks it first."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from guidedflow import benchmark, models
from guidedflow.benchmark import peers as benchmark_peers
from guidedflow.cli import main


@pytest.fixture(scope="module")
def work():
    network = models.create("tiny", num_classes=1000, double_channels=True, patch=2, channels=3)
    return benchmark.make_workload(network, batch=2, steps=2)


@pytest.mark.parametrize("name", ["torch", "diffusers"])
def test_peers_compute_the_same_guided_velocity(work, name):
    peer = benchmark_peers.load().PEERS[name](work)
    assert benchmark_peers.distance(work, "vmapped", peer, name) < 1e-5
    peer.run()


def test_a_peer_with_another_output_is_refused(work):
    peer = benchmark_peers.load().PEERS["torch"](work)
    other = benchmark_peers.Peer(peer.run, lambda t: 1.01 * peer.evaluate(t), 1e-4)
    with pytest.raises(ValueError, match="from our output"):
        benchmark_peers.distance(work, "vmapped", other, "torch")


def test_ratios_are_taken_round_by_round():
    row = benchmark_peers.ratios({"ours": [1.0, 2.0], "theirs": [2.0, 3.0]}, "ours", "theirs")
    assert row["rounds"] == [2.0, 1.5]
    assert row["times_faster"]["median"] == 1.75


def test_the_command_writes_ratios_of_sampling_and_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    options = ["--preset=tiny", "--batch=2", "--steps=1", "--repeats=2", "--modes=vmapped"]
    assert main(["bench", *options, "--against=torch", "--training", f"--out={tmp_path}"]) == 0
    assert "times faster" in capsys.readouterr().out
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert len(figures["against"]["torch"]["rounds"]) == 2
    assert np.all(np.array(figures["training"]["against"]["torch"]["rounds"]) > 0)
    assert figures["training"]["utilisation"]["median"] > 0


def test_an_unknown_program_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert main(["bench", "--preset=tiny", "--modes=vmapped", "--against=torhc"]) == 2
    assert "did you mean 'torch'" in capsys.readouterr().err
