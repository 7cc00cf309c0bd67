"""Next-word models: sizes, starts, masks, and a federated step of one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.core import metrics, trees
from locojax.data import words
from locojax.methods.dp_ftrl import clipping, next_word, rounds

KEY = jax.random.key(0)
TINY = next_word.next_word_model("cifg_tiny")
P, O, B, E = next_word.PAD, next_word.OOV, next_word.BOS, next_word.EOS


def shapes_of(preset, **changes):
  """Shapes of the parameters."""
  model = next_word.next_word_model(preset, **changes)
  return jax.eval_shape(model.init, KEY, jnp.zeros((1, 3), jnp.int32))["params"]


@pytest.mark.parametrize(
  ("preset", "changes", "size"),
  [
    ("stackoverflow", {}, 4_050_748),
    ("stackoverflow", {"tie_embedding": True}, 4_050_748 - 970_388),
    ("cifg_production", {}, 1_412_250),
    ("cifg_production", {"unroll": 4}, 1_412_250),
  ],
)
def test_presets_have_their_sizes(preset, changes, size):
  assert trees.num_params(shapes_of(preset, **changes)) == size


def test_layers_of_the_stackoverflow_model():
  sizes = {
    n: trees.num_params(p) for n, p in shapes_of("stackoverflow").items()
  }
  assert sizes == {
    "embed": 960_384,
    "recurrent_0": 2_055_560,
    "bottleneck": 64_416,
    "output": 970_388,
  }


def test_starts_are_those_of_the_reference():
  model = next_word.next_word_model(
    "stackoverflow", vocab_size=500, embedding_size=64, units=100
  )
  params = jax.jit(model.init)(KEY, jnp.zeros((1, 3), jnp.int32))["params"]
  embed = params["embed"]["embedding"]
  assert -0.05 <= embed.min() < -0.0499 and 0.0499 < embed.max() <= 0.05
  kernel = params["recurrent_0"]["input"]["kernel"]
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / 64), rtol=0.05)
  u = np.asarray(params["recurrent_0"]["cell"]["recurrent"]["kernel"])
  np.testing.assert_allclose(u @ u.T, np.eye(100), atol=1e-5)
  output = params["output"]["kernel"]
  np.testing.assert_allclose(output.std(), np.sqrt(2 / 564), rtol=0.05)


def test_special_tokens_are_those_of_the_data():
  assert (words.PAD, words.OOV, words.BOS, words.EOS) == (P, O, B, E)


def test_accuracies_leave_out_what_they_say():
  labels = np.array([[5, O, 6, E, P], [7, 8, E, P, P], [5, 5, 5, 5, 5]])
  guesses = np.array([[5, O, 5, E, P], [E, 8, 9, P, P], [5, 5, 5, 5, 5]])
  logits = jax.nn.one_hot(guesses, 10)
  mask = np.array([1.0, 1.0, 0.0])
  found = metrics.values(next_word.masked_accuracies(logits, labels, mask))
  assert found == {
    "accuracy_no_oov_or_eos": 2 / 4,
    "accuracy_no_oov": 3 / 6,
    "accuracy_with_oov": pytest.approx(4 / 7),
  }
  halves = [
    next_word.masked_accuracies(logits[i], labels[i], mask[i])
    for i in (slice(0, 1), slice(1, 3))
  ]
  assert metrics.values(metrics.merge(*halves)) == found


def sentences(seed, *shape):
  """Random sentences of 1 to 6 words, `[*shape, 8]`."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(4, 64, (*shape, 8))
  ends = rng.integers(2, 8, (*shape, 1))
  place = np.arange(8)
  tokens = np.where(place < ends, tokens, np.where(place == ends, E, P))
  tokens[..., 0] = B
  return tokens.astype(np.int32)


def test_padding_and_masked_sentences_do_not_matter():
  loss_fn = next_word.next_word_loss(TINY)
  tokens = sentences(0, 4)
  params = jax.jit(TINY.init)(KEY, tokens)["params"]
  grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (plain, _), plain_grads = grad_fn(params, {}, {"tokens": tokens}, KEY)
  longer = np.pad(tokens, ((0, 2), (0, 5)))
  longer[4:, 0] = B
  longer[4:, 1:3] = 9
  batch = {"tokens": longer, "mask": np.array([1, 1, 1, 1, 0, 0])}
  (padded, (found, _)), grads = grad_fn(params, {}, batch, KEY)
  np.testing.assert_allclose(padded, plain, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(plain_grads)):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert float(found["loss"].weight) == np.sum(tokens[:, 1:] != P)
  batch["mask"] = np.zeros(6)
  (nothing, _), grads = grad_fn(params, {}, batch, KEY)
  assert nothing == 0 and not any(map(jnp.any, jax.tree.leaves(grads)))


def test_a_federated_step_learns():
  """Clients that always say the same: the model soon does too."""
  step = jax.jit(
    rounds.make_step(
      next_word.next_word_loss(TINY),
      rounds.server_sgd(1.0, num_clients=4, momentum=0.9),
      client_tx=optax.sgd(0.5),
      clip=clipping.Clip(1.0),
      clients_per_chunk=2,
    )
  )
  tokens = np.broadcast_to(sentences(1), (4, 2, 3, 8))
  batch = {"tokens": tokens, "mask": np.ones((4, 2, 3), np.float32)}
  state = rounds.init_state(
    jax.jit(TINY.init)(KEY, tokens[0, 0])["params"],
    rounds.server_sgd(1.0, num_clients=4, momentum=0.9),
    clip=clipping.Clip(1.0),
    key=KEY,
  )
  for _ in range(60):
    state, found = step(state, batch)
  found = metrics.values(found)
  assert found["loss"] < 1.0
  assert found[rounds.NOT_PRIVATE + "accuracy_no_oov_or_eos"] > 0.6


def test_bad_settings_are_named():
  with pytest.raises(ValueError, match="preset='cifg'"):
    next_word.next_word_model("cifg")
  with pytest.raises(ValueError, match="field='unit'"):
    next_word.next_word_model("cifg_tiny", unit=3)
  with pytest.raises(ValueError, match="tie_embedding=True"):
    shapes_of("cifg_production", projection=95)
