"""Positions for another size: each way is what its program computes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.ndimage

from locojax.nn import vit_positions

close = np.testing.assert_allclose
SIZES = ((4, 7), (7, 4), (14, 24), (5, 5), (3, 1), (1, 3), (2, 16))

# torch.nn.functional.interpolate(bicubic, align_corners=False) of the unit
# vectors of 4 places to 3 and to 6; torch 2.14.1, as scripts/check_vit_weights
# holds whole tables against it.
TORCH = {
  3: [
    [0.856482, 0.160880, -0.017361, 0.0],
    [-0.093750, 0.593750, 0.593750, -0.093750],
    [0.0, -0.017361, 0.160879, 0.856482],
  ],
  6: [
    [1.086806, -0.086806, 0.0, 0.0],
    [0.5, 0.593750, -0.093750, 0.0],
    [-0.086805, 0.943287, 0.160880, -0.017361],
    [-0.017361, 0.160880, 0.943287, -0.086806],
    [0.0, -0.093750, 0.593750, 0.5],
    [0.0, 0.0, -0.086805, 1.086805],
  ],
}
# The same with antialias=True.
TORCH_ANTIALIAS = {
  3: [
    [0.752860, 0.304348, -0.057208, 0.0],
    [-0.035201, 0.535201, 0.535201, -0.035201],
    [0.0, -0.057208, 0.304348, 0.752860],
  ],
  6: [
    [1.065789, -0.065789, 0.0, 0.0],
    [0.529412, 0.529412, -0.058824, 0.0],
    [-0.057870, 0.937500, 0.131945, -0.011574],
    [-0.011574, 0.131944, 0.937500, -0.057870],
    [0.0, -0.058824, 0.529412, 0.529412],
    [0.0, 0.0, -0.065790, 1.065790],
  ],
}


def _table(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_official_is_the_zoom_of_scipy(old, new):
  grid = _table(0, old, old, 3)
  zoom = (new / old, new / old, 1)
  want = scipy.ndimage.zoom(grid, zoom, order=1)
  got = vit_positions.resize(grid.reshape(1, -1, 3), (new, new), num_prefix=0)
  close(got, want.reshape(1, -1, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["torch", "timm"])
@pytest.mark.parametrize("new", [3, 6])
def test_cubic_ways_are_torchs(way, new):
  want = (TORCH if way == "torch" else TORCH_ANTIALIAS)[new]
  close(vit_positions.weights(4, new, way=way), want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (14, 24)])
def test_timm_is_the_cubic_of_jax(old, new):
  got = vit_positions.weights(old, new, way="timm")
  want = jax.image.resize(np.eye(old, dtype=np.float32), (new, old), "cubic")
  close(got, want, rtol=1e-5, atol=1e-5)


def test_ways_differ_and_have_rows_that_sum_to_1():
  made = {w: vit_positions.weights(14, 24, way=w) for w in vit_positions.WAYS}
  for matrix in made.values():
    close(matrix.sum(axis=1), 1.0, rtol=1e-12)
    close(matrix, matrix[::-1, ::-1], atol=1e-12)  # mirrored is mirrored
  assert np.abs(made["torch"] - made["timm"]).max() > 0.05
  assert np.abs(made["official"] - made["torch"]).max() > 0.2


def test_ways_differ_on_positions_as_much_as_their_programs_do():
  table = _table(2, 1, 196, 64)
  made = {
    way: vit_positions.resize(table, (24, 24), way=way, num_prefix=0)
    for way in vit_positions.WAYS
  }
  apart = lambda a, b: float(np.abs(made[a] - made[b]).max())
  assert 0.2 < apart("torch", "timm") < 0.8
  assert apart("official", "timm") > 1.0 < apart("official", "torch")


@pytest.mark.parametrize("way", vit_positions.WAYS)
def test_rows_in_front_stay_and_sides_are_apart(way):
  table = _table(1, 1, 2 + 12, 5)
  got = vit_positions.resize(
    table, (3, 7), way=way, num_prefix=2, old_grid=(3, 4)
  )
  assert got.shape == (1, 2 + 21, 5) and got.dtype == np.float32
  np.testing.assert_array_equal(got[:, :2], table[:, :2])
  matrix = vit_positions.weights(4, 7, way=way)
  want = np.einsum("jp,ope->oje", matrix, table[0, 2:].reshape(3, 4, 5))
  close(got[0, 2:], want.reshape(-1, 5), rtol=1e-5, atol=1e-6)
  same = vit_positions.resize(
    table, (3, 4), way=way, num_prefix=2, old_grid=(3, 4)
  )
  np.testing.assert_array_equal(same, table)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="resize='bicubic'.*'official'"):
    vit_positions.resize(np.zeros((1, 5, 2)), (3, 3), way="bicubic")
  for shape in ((1, 4, 2), (5, 2), (1, 1, 2)):
    with pytest.raises(ValueError, match=r"positions have shape.*a square"):
      vit_positions.resize(np.zeros(shape), (3, 3))
  with pytest.raises(ValueError, match=r"L patches of \(2, 3\)"):
    vit_positions.resize(np.zeros((1, 5, 2)), (3, 3), old_grid=(2, 3))
  with pytest.raises(ValueError, match="new=0"):
    vit_positions.weights(2, 0)
