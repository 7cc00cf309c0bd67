"""Layouts of boxes: there and back, in NumPy and in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import boxes

PAIRS = [
  (boxes.yxyx_to_xyxy, boxes.xyxy_to_yxyx),
  (boxes.yxyx_to_xywh, boxes.xywh_to_yxyx),
  (boxes.xyxy_to_xywh, boxes.xywh_to_xyxy),
  (boxes.yxyx_to_cxcywh, boxes.cxcywh_to_yxyx),
]


@pytest.mark.parametrize(("there", "back"), PAIRS)
def test_layouts_go_there_and_back(there, back):
  corners = np.sort(np.random.default_rng(0).random((2, 5, 2, 2)), axis=2)
  given = corners.reshape(2, 5, 4)
  np.testing.assert_allclose(back(there(given)), given, atol=1e-15)
  assert isinstance(there(given), np.ndarray)
  on_device = jax.jit(there)(jnp.asarray(given))
  np.testing.assert_allclose(on_device, there(given), atol=1e-6)


def test_one_box_in_all_layouts():
  box = np.array([1.0, 2.0, 5.0, 10.0])
  assert boxes.yxyx_to_xyxy(box).tolist() == [2, 1, 10, 5]
  assert boxes.yxyx_to_xywh(box).tolist() == [2, 1, 8, 4]
  assert boxes.yxyx_to_cxcywh(box).tolist() == [6, 3, 8, 4]
  assert boxes.xyxy_to_xywh([2, 1, 10, 5]).tolist() == [2, 1, 8, 4]


def test_proper_boxes_have_a_height_and_a_width():
  given = [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1], [1, 0, 0, 1]]
  assert boxes.is_proper(given).tolist() == [True, False, False, False]


def test_other_shapes_are_refused():
  with pytest.raises(ValueError, match=r"shape \(5,\).*\[\.\.\., 4\]"):
    boxes.yxyx_to_xywh(np.zeros(5))
