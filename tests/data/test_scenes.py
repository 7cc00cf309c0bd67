"""Captioned scenes."""

from __future__ import annotations

import numpy as np
import pytest

from locojax.data import scenes


def test_splits_share_no_combination_and_training_has_every_word():
  train, test = scenes.held_out(0.2, seed=0)
  assert not set(train) & set(test)
  assert len(train) + len(test) == len(scenes.COMBINATIONS)
  for part in range(4):
    words = {scenes.COMBINATIONS[i][part] for i in train}
    assert words == {c[part] for c in scenes.COMBINATIONS}


def test_pairs_are_a_function_of_the_seed_and_even():
  train, _ = scenes.held_out(0.2, seed=0)
  a, b, c = (scenes.pairs(train, 2 * len(train), seed=s) for s in (1, 1, 2))
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])
  assert (a["image"] != c["image"]).any()
  _, counts = np.unique(a["combination"], return_counts=True)
  assert (counts == 2).all()
  for caption, i in zip(a["caption"][:20], a["combination"]):
    assert all(word in caption for word in scenes.COMBINATIONS[i])


def test_the_picture_shows_what_the_caption_says():
  rng = np.random.default_rng(0)
  for colour, place in (("red", "top left"), ("blue", "bottom right")):
    image = scenes.draw(
      (colour, "circle", place, "gray"), rng, size=32, noise=0.0
    )
    y, x = (int(32 * p) for p in scenes.PLACES[place])
    assert np.abs(image[y, x] - np.array(scenes.COLOURS[colour])).max() <= 1
    assert (image[31 - y, 31 - x] == 128).all()


def test_shapes_differ():
  pictures = [
    scenes.draw(
      ("red", s, "middle", "white"), np.random.default_rng(3), noise=0.0
    )
    for s in scenes.SHAPES
  ]
  for i, a in enumerate(pictures):
    assert all((a != b).any() for b in pictures[:i])


def test_bad_input_is_named():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="colour"):
    scenes.draw(("rad", "circle", "middle", "white"), rng)
  with pytest.raises(ValueError, match="share=0.9"):
    scenes.held_out(0.9, seed=0)
