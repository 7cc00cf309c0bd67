"""Encoder and decoder: what may see what, relative positions, parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import trees
from locojax.nn import attention, lm, relative, seq2seq, transformer

close = np.testing.assert_allclose
same = np.testing.assert_array_equal
VOCAB = 11
SIZES = dict(
  vocab_size=VOCAB,
  max_inputs=6,
  max_len=8,
  encoder_layers=1,
  decoder_layers=2,
  num_heads=2,
  model_size=8,
)
POSITIONS = pytest.mark.parametrize("positions", ["learned", "relative"])


def _model(**kwargs):
  return seq2seq.Seq2SeqLM(**{**SIZES, **kwargs})


def _tokens(num, seed=1):
  return jax.random.randint(jax.random.key(seed), (2, num), 0, VOCAB)


@functools.lru_cache
def _params(**kwargs):
  init = jax.jit(_model(**kwargs).init)
  return init(jax.random.key(0), _tokens(2), inputs=_tokens(3))["params"]


@functools.lru_cache
def _applied(**kwargs):
  model = _model(**kwargs)
  return jax.jit(
    lambda p, tokens, inputs, valid=None: model.apply(
      {"params": p}, tokens, inputs=inputs, inputs_valid=valid
    )
  )


def _moved(a, b):
  return np.max(np.abs(np.asarray(a) - np.asarray(b)), axis=-1)


@POSITIONS
def test_logits_see_earlier_tokens_and_all_of_the_input(positions):
  run = functools.partial(
    _applied(positions=positions), _params(positions=positions)
  )
  tokens, inputs = _tokens(5), _tokens(6, seed=2)
  logits = run(tokens, inputs)
  other = tokens.at[:, 2].set((tokens[:, 2] + 1) % VOCAB)
  moved = _moved(run(other, inputs), logits)
  assert not np.any(moved[:, :2]) and np.all(moved[:, 2:] > 1e-4)
  other = inputs.at[:, 5].set((inputs[:, 5] + 1) % VOCAB)
  assert np.all(_moved(run(tokens, other), logits) > 1e-5)
  turned = jnp.roll(inputs, 1, axis=1)  # the order of the input matters
  assert np.all(_moved(run(tokens, turned), logits) > 1e-5)


@POSITIONS
def test_padding_of_the_input_is_as_if_removed(positions):
  run = functools.partial(
    _applied(positions=positions), _params(positions=positions)
  )
  tokens, inputs = _tokens(5), _tokens(6, seed=2)
  valid = jnp.array([[0, 1, 1, 0, 1, 0]] * 2, bool)
  want = run(tokens, inputs[:, valid[0]])
  close(run(tokens, inputs, valid), want, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_all_parameters_and_scan_is_unrolled():
  tokens, inputs = _tokens(5), _tokens(6, seed=2)
  kwargs = dict(positions="relative", output_bias=True)
  model, params = _model(**kwargs), _params(**kwargs)

  def loss(model):
    def of(params):
      logits = model.apply({"params": params}, tokens, inputs=inputs)
      return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0])

    return jax.jit(jax.value_and_grad(of))

  value, grads = loss(model)(params)
  for path, grad in trees.flatten(grads).items():
    if not path.endswith("key/bias"):  # a softmax does not feel it
      assert float(jnp.max(jnp.abs(grad))) > 0, path
  stack = transformer.stack_blocks
  scanned = {**params}
  for part in ("encoder", "decoder"):
    scanned[part] = {**params[part], part: stack(params[part][part])}
  other, its = loss(_model(scan=True, remat="block", **kwargs))(scanned)
  close(other, value, rtol=1e-5)
  its = transformer.unstack_blocks(its["decoder"]["decoder"])
  jax.tree.map(
    lambda a, b: close(a, b, rtol=1e-4, atol=1e-5),
    its,
    dict(grads["decoder"]["decoder"]),
  )


def _count(**kwargs):
  model = _model(**kwargs)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), _tokens(2), inputs=_tokens(2))
  )["params"]
  return shapes, trees.num_params(shapes)


def test_parameters_are_counted_and_the_embedding_is_shared():
  shapes, num = _count(output_bias=True)
  assert set(shapes) == {"embed", "encoder", "decoder"}
  attend, norm, feed = 4 * (8 * 8 + 8), 2 * 8, 8 * 32 * 2 + 32 + 8
  encoder = attend + feed + 2 * norm
  decoder = 2 * attend + feed + 3 * norm
  tables = VOCAB * 8 + (6 + 8) * 8 + VOCAB
  assert num == encoder + 2 * decoder + 2 * norm + tables
  shapes, more = _count(share_embedding=False, tie_embedding=False)
  assert more == num + 2 * VOCAB * 8 - VOCAB
  assert "embed" in shapes["encoder"] and "output" in shapes["decoder"]
  _, rel = _count(positions="relative", output_bias=True)
  assert rel == num - (6 + 8) * 8 + 2 * 32 * 2


def test_the_decoder_of_pix2seq_has_its_parameters():
  model = lm.DecoderLM(
    3000,
    max_len=512,
    num_layers=6,
    num_heads=16,
    model_size=512,
    hidden_size=2048,
    tie_embedding=True,
    output_bias=True,
    cross_attention=True,
  )
  tokens, memory = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 4, 512))
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), tokens, memory=memory)
  )
  block = 8 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512 + 3 * 1024
  want = 6 * block + 1024 + 3000 * 512 + 512 * 512 + 3000
  assert trees.num_params(shapes) == want


BOTH = {0: 0, 1: 17, -1: 1, 7: 23, -8: 8, 8: 24, -15: 9, 15: 25, 16: 26}
BOTH |= {20: 26, 50: 29, -50: 13, 127: 31, 999: 31, -127: 15, -999: 15}
BACK = {5: 0, 0: 0, -1: 1, -15: 15, -16: 16, -20: 17, -50: 24, -127: 31}


@pytest.mark.parametrize(("both", "table"), [(True, BOTH), (False, BACK)])
def test_buckets_of_relative_positions(both, table):
  got = relative.buckets(jnp.array(list(table)), bidirectional=both)
  assert got.tolist() == list(table.values())
  far = relative.buckets(-jnp.arange(300), bidirectional=both)
  assert np.all(np.diff(far) >= 0)


def test_the_bias_is_added_to_the_scores():
  x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
  far = jnp.zeros((1, 2, 3, 3)).at[:, :, :, 1].set(1e9)
  out = attention.attend(x, x, x, bias=far)
  close(out, jnp.broadcast_to(x[:, 1:2], x.shape), rtol=1e-6)
  table = relative.RelativeBias(2)
  places = jnp.arange(3)[None]
  params = table.init(jax.random.key(1), places, places)
  bias = table.apply(params, places, places)
  assert bias.shape == (1, 2, 3, 3)
  close(bias[0, :, 0, 1], params["params"]["embedding"][17])
  close(bias[0, :, 2, 1], params["params"]["embedding"][1])


def test_mistakes_are_named():
  init = lambda model, *args, **kw: jax.eval_shape(
    lambda: model.init(jax.random.key(0), *args, **kw)
  )
  memory = jnp.zeros((2, 3, 8))
  for call, words in (
    (lambda: init(_model(), _tokens(2)), "context=None.*cross=True"),
    (
      lambda: init(_model(), _tokens(2), inputs=_tokens(2), memory=memory),
      "inputs and memory",
    ),
    (lambda: init(_model(), _tokens(2), inputs=_tokens(7)), "length of inputs"),
    (
      lambda: init(_model(share_embedding=2), _tokens(2), inputs=_tokens(2)),
      "share_embedding=2",
    ),
    (
      lambda: init(_model(positions="relativ"), _tokens(2), inputs=_tokens(2)),
      "did you mean 'relative'",
    ),
    (
      lambda: init(_model(cache_len=9), _tokens(2), inputs=_tokens(2)),
      r"cache_len=9.*\[1, 8\]",
    ),
    (
      lambda: init(_model(), _tokens(2), memory=jnp.zeros((3, 2, 8))),
      "rows of the input=2.*rows of context=3",
    ),
    (
      lambda: init(transformer.Stack(1, 2, 8), memory, context=memory),
      "cross_attention=False",
    ),
    (
      lambda: relative.buckets(jnp.arange(2), bidirectional=1),
      "bidirectional=1",
    ),
    (
      lambda: relative.buckets(
        jnp.arange(2), bidirectional=False, num_buckets=5
      ),
      "num_buckets=5",
    ),
    (
      lambda: relative.buckets(
        jnp.arange(2), bidirectional=False, max_distance=16
      ),
      "max_distance=16",
    ),
    (
      lambda: init(relative.RelativeBias(0), memory[..., 0], memory[..., 0]),
      "num_heads=0",
    ),
  ):
    with pytest.raises(ValueError, match=words):
      call()
