"""The loss of Pix2Seq: weights, masks, devices, statistics, composition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from locojax import ciw, pix2seq
from locojax.train import sharding, steps
from tests.methods.pix2seq import small

KEY = jax.random.key(5)
SETTINGS = dict(max_objects=4, order="none", corruption="none")


@functools.cache
def _made(name="tiny"):
  net = small.model(name)
  return net, *small.drawn(net)


@functools.cache
def _loss(name="tiny", **settings):
  """Loss, metrics, state and gradient, compiled."""
  net, _, _ = _made(name)
  loss_fn = pix2seq.make_loss_fn(net, small.VOCAB, **{**SETTINGS, **settings})
  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def _run(batch, name="tiny", **settings):
  _, params, state = _made(name)
  return _loss(name, **settings)(params, state, batch, KEY)


def _close(a, b, **kwargs):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


def _quiet(**settings):
  """Nothing is drawn: no noise, nothing dropped."""
  return dict(inject_noise=False, train=False, **settings)


def test_the_loss_is_that_of_the_parts():
  net, params, _ = _made()
  batch = small.batch()
  (loss, (found, state)), _ = _run(batch, **_quiet())
  objects = pix2seq.order_objects(
    batch["boxes"], batch["labels"], batch["valid"], "none"
  )
  told = pix2seq.build_sequences(
    objects.boxes,
    objects.labels,
    jnp.zeros((4, 4), bool),
    objects.valid,
    small.VOCAB,
    corruption="none",
  )
  apply = jax.jit(net.apply)
  logits = apply({"params": params}, batch["image"], told.inputs)
  part = (logits, told.targets, told.weights)
  wanted = pix2seq.token_loss(*part)
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  np.testing.assert_allclose(found["loss"].value(), wanted, rtol=1e-5)
  for name, value in pix2seq.token_metrics(*part).items():
    np.testing.assert_allclose(found[name].value(), value, rtol=1e-5)
  assert state == {}


def test_what_is_masked_is_removed():
  batch = small.batch()
  mask = jnp.array([1.0, 1.0, 0.0, 0.0])
  spoilt = {
    "image": batch["image"].at[2:].set(np.nan),
    "boxes": batch["boxes"].at[2:].set(np.inf),
    "labels": batch["labels"].at[2:].set(99),
    "valid": batch["valid"],
    "mask": mask,
  }
  (loss, (found, _)), grads = _run(spoilt, **_quiet())
  left = jax.tree.map(lambda x: x[:2], batch)
  (wanted, (others, _)), wanted_grads = _run(left, **_quiet())
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  _close(found, others, rtol=1e-5)
  _close(grads, wanted_grads, rtol=1e-4, atol=1e-6)
  (none, _), still = _run({**spoilt, "mask": jnp.zeros(4)}, **_quiet())
  assert none == 0
  assert all(not np.any(x) for x in jax.tree.leaves(still))


def test_weights_of_examples_weigh_their_tokens():
  batch = small.batch()
  weight = jnp.array([2.0, 0.0, 0.5, 1.0])
  (loss, _), _ = _run({**batch, "weight": weight}, **_quiet())
  net, params, _ = _made()
  losses_fn = pix2seq.make_losses_fn(
    net, small.VOCAB, **{**SETTINGS, **_quiet()}
  )
  each, _ = jax.jit(losses_fn)(params, {}, batch, KEY)
  assert each.shape == (4,)
  number = np.asarray(batch["valid"]).sum(axis=1)
  tokens = 5 * number + 0.1 * (20 - 5 * number)
  wanted = np.sum(weight * tokens * each) / np.sum(weight * tokens)
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_instance_weights_compose():
  net, params, _ = _made()
  losses_fn = pix2seq.make_losses_fn(
    net, small.VOCAB, **{**SETTINGS, **_quiet()}
  )
  config = ciw.InstanceConfig(lam=0.5)
  weighted = ciw.reweight(losses_fn, config)
  batch = small.batch()
  loss, _ = jax.jit(weighted)(params, {}, batch, KEY)
  each, _ = jax.jit(losses_fn)(params, {}, batch, KEY)
  weights = ciw.weights_at(each, config)
  np.testing.assert_allclose(loss, np.sum(weights * each), rtol=1e-5)


def test_a_label_that_is_none_gives_nan():
  batch = small.batch()
  for wrong in (0, 3):
    labels = batch["labels"].at[1, 0].set(wrong)
    (loss, _), _ = _run({**batch, "labels": labels}, **_quiet())
    assert np.isnan(loss)
  beside = batch["labels"].at[0, 3].set(3)  # not valid there
  (loss, _), _ = _run({**batch, "labels": beside}, **_quiet())
  assert np.isfinite(loss)


def test_targets_of_weight_0_have_no_gradient():
  net, params, _ = _made()
  memory = jax.random.normal(KEY, (4, 4, 8))
  told = pix2seq.sequences_of(
    KEY, small.batch(), small.VOCAB, max_objects=4, corruption="none"
  )
  free = np.asarray(told.weights) == 0
  assert free.any()

  def loss(own, targets, shift):
    logits = net.decoder.apply({"params": own}, told.inputs, memory=memory)
    return pix2seq.token_loss(logits + shift, targets, told.weights)

  grad = jax.jit(jax.grad(loss, argnums=(0, 2)))
  shift = jnp.zeros((*told.targets.shape, small.VOCAB.size))
  grads, of_logits = grad(params["decoder"], told.targets, shift)
  assert not np.any(np.asarray(of_logits)[free])
  assert np.asarray(of_logits)[~free].any(axis=-1).all()
  others = jnp.where(free, (told.targets + 1) % 13, told.targets)
  _close(grads, grad(params["decoder"], others, shift)[0], atol=0, rtol=0)


def test_the_key_draws_order_noise_and_what_is_dropped():
  batch = small.batch()
  _, params, _ = _made()
  run = _loss(order="random", corruption="rand_n_fake_cls")
  (one, _), grads = run(params, {}, batch, KEY)
  (same, _), _ = run(params, {}, batch, KEY)
  (other, _), _ = run(params, {}, batch, jax.random.key(6))
  assert one == same and one != other
  assert np.isfinite(one) and np.isfinite(other)
  moved = jax.tree.map(lambda g: bool(np.any(g)), grads)
  assert all(jax.tree.leaves(moved["decoder"])) and any(
    jax.tree.leaves(moved["encoder"])
  )


def _sharded(batch, name, **settings):
  _, params, state = _made(name)
  mesh = sharding.make_mesh({"data": 8}, jax.devices()[:8])
  put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
  with jax.set_mesh(mesh):
    given = put((params, state), P()), put(batch, P("data")), put(KEY, P())
    return _loss(name, **settings)(*given[0], *given[1:])


@pytest.mark.parametrize("name", ["tiny", "resnet"])
def test_a_sharded_batch_is_the_whole(name):
  """Statistics of batch norm are those of all devices, too."""
  batch = small.batch(8) | {"mask": jnp.arange(8) != 5}
  settings = dict(order="random", corruption="real_n_fake_cls")
  (loss, rest), grads = _run(batch, name, **settings)
  (found, others), found_grads = _sharded(batch, name, **settings)
  np.testing.assert_allclose(found, loss, rtol=1e-5)
  _close(others, rest, rtol=1e-4, atol=1e-6)
  _close(found_grads, grads, rtol=5e-3, atol=2e-5)


def test_statistics_leave_masked_images_out():
  net, params, state = _made("resnet")
  images = small.images()
  mask = jnp.array([1, 1, 0, 0])

  @jax.jit
  def encode(images, mask):
    out = net.apply(
      {"params": params, **state},
      images,
      train=True,
      mask=mask,
      method="encode",
      rngs={"dropout": KEY},
      mutable=["batch_stats"],
    )
    return out[1]["batch_stats"]

  spoilt = images.at[2:].set(np.nan)
  twice = jnp.concatenate([images[:2], images[:2]])
  found, wanted = encode(spoilt, mask), encode(twice, jnp.ones(4))
  _close(found, wanted, rtol=1e-4, atol=1e-5)
  none = encode(spoilt, jnp.zeros(4))
  _close(none, state["batch_stats"], rtol=0, atol=0)
  moved = jax.tree.map(
    lambda a, b: bool(np.any(np.abs(a - b) > 1e-3)),
    found,
    state["batch_stats"],
  )
  assert any(jax.tree.leaves(moved))


def test_running_means_serve_evaluation():
  """No companion matters, and no state changes."""
  _, params, state = _made("resnet")
  batch = small.batch()
  run = _loss("resnet", **_quiet())
  given = {**state, "count": jnp.int32(3)}
  (_, (_, after)), _ = run(params, given, batch, KEY)
  _close(after, given, rtol=0, atol=0)
  mask = jnp.array([1, 0, 0, 0])
  other = batch["image"].at[1:].set(1 - batch["image"][1:])
  losses = [
    run(params, given, {**batch, "image": x, "mask": mask}, KEY)[0][0]
    for x in (batch["image"], other)
  ]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_microbatches_have_the_gradient_of_the_whole():
  net, params, _ = _made()
  loss_fn = pix2seq.make_loss_fn(net, small.VOCAB, **{**SETTINGS, **_quiet()})
  batch = small.batch()
  pieces = steps.value_and_grad(loss_fn, num_microbatches=2)
  loss, _, _, grads = jax.jit(pieces)(params, {}, batch, KEY)
  (wanted, _), wanted_grads = _run(batch, **_quiet())
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  _close(grads, wanted_grads, rtol=1e-4, atol=1e-6)


def test_noise_fills_the_slots_and_padding_the_rest():
  told = pix2seq.sequences_of(KEY, small.batch(), small.VOCAB, max_objects=4)
  assert not np.any(told.targets == small.VOCAB.eos)
  last = np.asarray(told.targets)[:, 4::5]
  number = np.asarray(small.batch()["valid"]).sum(axis=1)
  noise = (last == small.VOCAB.noise).sum(axis=1)
  np.testing.assert_array_equal(noise, 4 - number)
  for most in (2, 6):
    told = pix2seq.sequences_of(
      KEY, small.batch(), small.VOCAB, max_objects=most, inject_noise=False
    )
    real = np.asarray(told.targets)[:, 4::5] != small.VOCAB.eos
    assert real.shape == (4, most)
    np.testing.assert_array_equal(real.sum(axis=1), np.minimum(number, most))


def test_bad_settings_are_named():
  net, _, _ = _made()
  with pytest.raises(ValueError, match="vocab_size of the decoder="):
    pix2seq.make_loss_fn(net, pix2seq.Vocabulary(9, 99), **SETTINGS)
  loss_fn = pix2seq.make_loss_fn(net, small.VOCAB, **SETTINGS)
  batch = small.batch()
  nothing = {k: v[:, :0] for k, v in batch.items() if k != "image"}
  for wrong, text in (
    ({k: v for k, v in batch.items() if k != "valid"}, "batch has no 'valid'"),
    ({**batch, "boxes": batch["boxes"][:2]}, r"boxes .*\(2, "),
    ({**batch, **nothing}, "slots of labels=0"),
  ):
    with pytest.raises(ValueError, match=text):
      jax.eval_shape(loss_fn, _made()[1], {}, wrong, KEY)
  for settings, text in (
    ({"max_objects": 5}, r"max_objects=5 .*\[1, 4\]"),
    ({"train": 1}, "train=1"),
    ({"order": "size"}, "order='size'"),
    ({"corruption": "all"}, "corruption='all'"),
    ({"kind": "l2"}, "kind='l2'"),
    ({"inject_noise": "yes"}, "inject_noise='yes'"),
    ({"noise": True}, "setting='noise'"),
  ):
    with pytest.raises(ValueError, match=text):
      loss_fn = pix2seq.make_loss_fn(
        net, small.VOCAB, **{**SETTINGS, **settings}
      )
      jax.eval_shape(loss_fn, _made()[1], {}, small.batch(), KEY)
