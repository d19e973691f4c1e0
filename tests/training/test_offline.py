"""Nothing reaches the network unless it is asked to."""

import socket
import time
from pathlib import Path

import pytest

from guidedflow import cli
from guidedflow.training.loop import train

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whatever connects or looks up a name fails the test, also where the error is caught."""
    reached = []

    def refuse(*arguments, **options):
        reached.append(arguments)
        raise OSError("no network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    yield
    assert not reached


def test_a_whole_run_needs_no_network(tiny, tmp_path):
    """Data, checkpoints, TensorBoard, samples and a restart."""
    tiny.log.tensorboard = True
    tiny.steps, tiny.sample.every, tiny.sample.steps, tiny.sample.rows = 4, 4, 2, 1
    train(tiny, tmp_path, display=False)
    tiny.steps = 8
    train(tiny, tmp_path, resume=True, display=False)


@pytest.mark.parametrize("config", ["cifar10", "mnist", "imagenet64"])
def test_training_on_a_missing_set_says_at_once_what_prepares_it(tmp_path, capsys, config):
    began = time.process_time()
    where = f"--config.dataset.data_dir={tmp_path}"
    line = ["train", f"--config={CONFIGS / config}.py", f"--workdir={tmp_path / 'run'}", where]
    assert cli.main(line) == 2
    assert time.process_time() - began < 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "guidedflow prepare" in said
    assert not list(tmp_path.iterdir())


def test_training_on_missing_latents_says_what_writes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["train", f"--config={CONFIGS / 'imagenet256_sit_b2.py'}", "--workdir=run"]
    assert cli.main(line) == 2
    assert "guidedflow encode --dataset=NAME --out=data/imagenet256" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
