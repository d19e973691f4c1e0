"""docs/your_network.md: every block runs, and its networks and nulls do what the page says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import guidance, paths, samplers, times

PAGE = (Path(__file__).parents[1] / "docs" / "your_network.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def block(text):
    (found,) = [code for code in BLOCKS if text in code]
    return found


def run(*texts):
    """The names that the first block and those that hold `texts` leave behind."""
    names = {}
    for code in (BLOCKS[0], *map(block, texts)):
        exec(compile(code, "your_network.md", "exec"), names)
    return names


def guided_samples(names, w):
    guided = guidance.classifier_free(names["model"], 10, w)
    return samplers.sample_ode(guided, names["noise"], times.uniform_grid(4), names["labels"])


@pytest.mark.parametrize("text", ["from flax import linen", "from flax import nnx"])
def test_networks_of_flax_are_guided(text):
    names = run(text)
    assert not np.allclose(guided_samples(names, 1.0), guided_samples(names, 3.0))
    leaves = jax.tree.leaves(names["model"])
    assert sum(isinstance(leaf, jax.Array) for leaf in leaves) == 5


def test_the_network_of_equinox_is_a_score():
    pytest.importorskip("equinox", reason="the peers extra (equinox) is not installed")
    names = run("import equinox")
    assert names["images"].shape == (4, 2)
    # Data that is 0 always has the score -x / (1 - exp(-s)) over the example's own time s.
    exact = names["adapters"].as_model_fn(
        lambda x, s, cond: -x / (1 - jnp.exp(-s[:, None])),
        names["path"],
        names["predictions"].score,
        time=names["up_to_ten"],
    )
    out = samplers.sample_ddim(exact, names["noise"], names["grid"], path=names["path"])
    np.testing.assert_allclose(out, np.zeros((4, 2)), atol=1e-3)


def test_time_that_runs_back_is_the_same_model():
    names = run("def towards_noise")
    wanted = guided_samples(run(), 3.0)
    np.testing.assert_allclose(guided_samples(names, 3.0), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["def denoise", "adapters.karras", "class SquareRoot"])
def test_other_conventions_run(text):
    images = run(text)["images"]
    assert images.shape == (4, 2)
    assert np.all(np.isfinite(images))


def test_the_four_kinds_of_null():
    names = run("path, grid = paths.Linear()", "def apply_vector", "def encode")
    model, prompts, empty = (names[name] for name in ("model", "prompts", "empty"))
    at = names["noise"], jnp.full(4, 0.5)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), empty)
    strong, weak = model(*at, prompts), model(*at, many)
    np.testing.assert_allclose(names["guided"](*at, prompts), weak + 3 * (strong - weak), rtol=1e-4)
    assert not np.allclose(strong, weak)
    exec(block("def apply_flag"), names)
    np.testing.assert_allclose(names["images"], names["same"], rtol=1e-4, atol=1e-5)
    exec(block("def apply_vector"), names)
    np.testing.assert_allclose(names["images"], names["same"], rtol=1e-4, atol=1e-5)


def test_no_block_is_left_out():
    tested = [
        BLOCKS[0], *map(block, (
            "from flax import linen", "from flax import nnx", "import equinox", "def towards_noise",
            "def denoise", "adapters.karras", "class SquareRoot", "path, grid = paths.Linear()",
            "def apply_vector", "def encode", "def apply_flag",
        )),
    ]  # fmt: skip
    assert sorted(tested) == sorted(BLOCKS)


def test_every_path_of_the_table_exists():
    names = re.findall(r"`([A-Z]\w+)\(", PAGE)
    assert len(names) > 8
    for name in names:
        assert hasattr(paths, name), name
