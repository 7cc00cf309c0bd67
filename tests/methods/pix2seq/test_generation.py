"""Detections: samples, constraints, the end of sequences, batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from locojax import pix2seq
from tests import programs
from tests.methods.pix2seq import small

KEY = jax.random.key(7)


@functools.cache
def _made():
  net = small.model()
  return net, small.drawn(net)[0]


def _generate(images=None, row_ids=None, mask=None, **settings):
  net, params = _made()
  settings = {"vocab": small.VOCAB, "max_objects": 2, **settings}
  run = jax.jit(functools.partial(pix2seq.generate, net, **settings))
  images = small.images() if images is None else images
  return run(params, images=images, key=KEY, row_ids=row_ids, mask=mask)


def test_what_is_drawn_does_not_depend_on_companions_or_samples():
  settings = dict(top_p=1.0)
  whole = _generate(num_samples=3, **settings)
  assert whole.boxes.shape == (4, 3, 2, 4)
  some = _generate(
    small.images()[2:3], row_ids=jnp.array([2]), num_samples=2, **settings
  )
  np.testing.assert_array_equal(some.tokens[0], whole.tokens[2, :2])
  np.testing.assert_allclose(some.scores[0], whole.scores[2, :2], rtol=1e-4)
  rows = np.asarray(whole.tokens).reshape(12, -1)
  assert len(np.unique(rows, axis=0)) == 12


class _Seen(nn.Module):
  """An encoder that says how many images it was given."""

  seen: tuple = ()

  @nn.compact
  def __call__(self, images, *, train=False, mask=None):
    SEEN.append(images.shape[0])
    return nn.Dense(8)(images[:, ::8, ::8])


SEEN: list[int] = []


def test_samples_share_the_encoding():
  net = small.model().clone(encoder=_Seen())
  shapes = functools.partial(
    jax.eval_shape, net.init, jax.random.key(0), small.images()
  )
  params = shapes(small.tokens())["params"]
  SEEN.clear()
  generate = functools.partial(
    pix2seq.generate, net, vocab=small.VOCAB, max_objects=2, num_samples=5
  )
  out = jax.eval_shape(generate, params, images=small.images(), key=KEY)
  assert out.scores.shape == (4, 5, 2)
  assert SEEN == [4]


def _bins(found):
  slots = np.asarray(found.tokens).reshape(-1, 5)
  return slots[:, :4] - small.VOCAB.coord_start, slots[:, 4]


def test_constraints_hold_row_by_row():
  settings = dict(num_samples=8, top_p=1.0, temperature=3.0)
  free, _ = _bins(_generate(**settings))
  assert (free < 0).any()
  bins, last = _bins(_generate(constrain="slots", **settings))
  assert (bins >= 0).all() and (bins < small.VOCAB.num_bins).all()
  classes = {*small.VOCAB.class_ids, small.VOCAB.noise}
  assert set(last.tolist()) <= classes
  assert (bins[:, :2] > bins[:, 2:]).any()
  bins, last = _bins(_generate(constrain="boxes", **settings))
  assert set(last.tolist()) <= classes
  assert (bins >= 0).all() and (bins[:, :2] <= bins[:, 2:]).all()
  assert (bins[:, :2] < bins[:, 2:]).any(axis=1).any()


def test_nothing_counts_behind_the_end():
  settings = dict(num_samples=16, top_p=1.0, constrain="slots")
  found = _generate(stop_at_eos=True, eos_offset=-1.0, **settings)
  whole = np.asarray(pix2seq.before_eos(found.tokens, small.VOCAB))
  assert whole.any() and not whole.all()
  scores = np.asarray(found.scores)
  assert (scores[whole] > 0).all() and (scores[~whole] == 0).all()
  more = _generate(stop_at_eos=True, eos_offset=30.0, **settings)
  assert (np.asarray(more.scores) > 0).all()
  never = _generate(**settings)
  assert (np.asarray(never.scores) > 0).all()


def test_masked_images_have_no_detections():
  mask = jnp.array([1, 0, 1, 1])
  images = small.images().at[1].set(np.nan)
  found = _generate(images, mask=mask, top_k=1)
  whole = _generate(top_k=1)
  kept = np.array([0, 2, 3])
  np.testing.assert_array_equal(found.tokens[kept], whole.tokens[kept])
  assert (np.asarray(found.scores[1]) == 0).all()
  assert np.isfinite(found.boxes).all()


def test_bad_settings_are_named():
  for settings, text in (
    ({"max_objects": 5}, r"max_objects=5 .*\[1, 4\]"),
    ({"constrain": "box"}, "constrain='box'.*'slots'"),
    ({"top_p": 0.0}, "top_p=0.0"),
    ({"temperature": -1.0}, "temperature=-1.0"),
    ({"top_p_rule": "best"}, "top_p_rule='best'"),
    ({"stop_at_eos": 1}, "stop_at_eos=1"),
    ({"num_samples": 0}, "num_samples=0"),
    ({"vocab": pix2seq.Vocabulary(3, 8)}, "vocab_size of the decoder=13"),
    ({"over": "all"}, "over='all'"),
  ):
    with pytest.raises(ValueError, match=text):
      _generate(**settings)


@pytest.mark.parametrize("stop", [False, True])
def test_divided_images_are_detected_alone(stop):
  net, params = _made()
  settings = dict(max_objects=2, temperature=0.0, stop_at_eos=stop)
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((4,), ("data",), axis_types=auto)

  def find(params, images, axis):
    return pix2seq.generate(
      net, params, images, small.VOCAB, data_axis=axis, **settings
    )

  images = small.images()
  whole = jax.jit(find, static_argnums=2)(params, images, None)
  with jax.set_mesh(mesh):
    images = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
    run = jax.jit(find, static_argnums=2).lower(params, images, "data")
    run = run.compile()
    found = run(params, images)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), found, whole)
  )
  # Whether all have ended is all that is asked around.
  assert programs.talks(run) == [("pred[]", "all-reduce")] * stop
