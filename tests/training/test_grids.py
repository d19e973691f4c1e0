"""Grids of samples: every image where it belongs, unchanged, whatever its size, names or number."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from guidedflow.training.grids import draw_grid, to_uint8


def drawn(tmp_path, images, rows, **options):
    draw_grid(images, rows, "title", tmp_path / "grid.png", **options)
    with Image.open(tmp_path / "grid.png") as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_bytes_are_rounded_and_cut():
    assert to_uint8(np.array([-2, -1, 0, 1, 3.0])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("side", [4, 8, 100])
def test_every_image_stands_in_its_row_and_column(tmp_path, side):
    """Six flat images of six colours: each colour is one rectangle, ordered as the images are."""
    colours = np.linspace(-0.9, 0.9, 6)
    images = np.ones((6, side, side, 3)) * np.array([1, 1, 0.5]) * colours[:, None, None, None]
    page = drawn(tmp_path, images, 2)
    centres = []
    for image in images:
        at = np.argwhere((page == to_uint8(image[0, 0])).all(-1))
        low, high = at.min(0), at.max(0)
        assert np.all(high - low + 1 >= min(side, 50))
        assert len(at) == np.prod(high - low + 1)
        centres.append((low + high) / 2)
    across, down = np.diff(centres[:3], axis=0), np.subtract(centres[3:], centres[:3])
    assert np.all(across[:, 0] == 0)
    assert np.all(across[:, 1] > side)
    assert np.all(down[:, 1] == 0)
    assert np.all(down[:, 0] > side)


def test_latents_show_their_first_channel(tmp_path):
    latents = np.zeros((1, 8, 8, 4))
    latents[..., 0], latents[..., 1] = -1, 1
    page = drawn(tmp_path, latents, 1)
    assert (page == 0).all(-1).sum() >= 50 * 50


@pytest.mark.parametrize("name", ["horse", "great white shark"])
def test_names_do_not_run_into_one_another(tmp_path, name):
    page = drawn(tmp_path, np.ones((4, 8, 8, 1)), 1, columns=[name] * 4, row_names=["a name"])
    inked = page[-60:-30].min(axis=(0, 2)) < 128
    starts = np.flatnonzero(np.diff(np.concatenate([[0], inked])) == 1)
    ends = np.flatnonzero(np.diff(np.concatenate([inked, [0]])) == -1)
    gaps = np.sort(starts[1:] - ends[:-1])
    # Between names there is more room than between two letters of one.
    assert gaps[-3] > 1.5
    assert starts[0] > 0
    assert ends[-1] < page.shape[1] - 1


def test_sampling_loads_no_plotting_library_and_no_pipeline():
    """They are most of what a second start would wait for."""
    code = (
        "import sys, guidedflow.commands.sample; print(*{'matplotlib', 'grain'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
