"""The pictures' pixels, and files that are whole or not there."""

import numpy as np
import pytest
from PIL import Image

from sintrovae_jax import files
from sintrovae_jax.plots import draw


def test_grid_puts_images_row_by_row_and_enlarges_small_ones(tmp_path):
    images = np.zeros((5, 24, 24, 3), np.float32)
    images[3] = [1.0, 0.5, -3.0]  # clipped
    draw.grid(tmp_path / "grid.png", images, columns=3)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (2 * 49, 2 * 74, 3), "two pixels for one, and a line between the images"
    np.testing.assert_array_equal(pixels[50:98, :48].reshape(-1, 3), np.tile([255, 128, 0], (48 * 48, 1)))
    assert (pixels[:48, :48] == 0).all()
    assert (pixels[48:50] == 255).all(), "the line"
    assert (pixels[50:, 100:] == 255).all(), "the place of the sixth image is empty"


def test_grid_of_grey_images(tmp_path):
    draw.grid(tmp_path / "grid.png", np.full((4, 48, 48, 1), 0.25), columns=2)
    assert Image.open(tmp_path / "grid.png").mode == "L"


def test_density_pictures_y_upwards(tmp_path):
    energy = np.full((64, 64), 50.0)
    energy[48:, :16] = 0.0  # the rows of large y, the columns of small x: top left
    points = np.zeros((3, 2))
    draw.density(tmp_path / "density.png", points, points, energy, 2.0)
    pixels = np.asarray(Image.open(tmp_path / "density.png").convert("RGB")).astype(int)
    yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 200) & (pixels[..., 2] < 100)
    rows, columns = np.nonzero(yellow)
    assert len(rows) > 500
    assert rows.max() < pixels.shape[0] / 2, "large y is at the top"
    assert columns.min() > pixels.shape[1] * 2 / 3, "the third panel"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as beside:
        beside.write_text("half of")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
