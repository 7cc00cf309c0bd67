"""Libraries that are called directly refuse bad values early, by name.

Shapes alone: nothing is compiled. What a config may hold is in
`experiments/test_bad_values.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import pytest

from locojax.core import checks
from locojax.methods import dp_ftrl, limoe
from locojax.methods.dp_ftrl import accounting, matrix, next_word, participation
from locojax.nn import (
  lm,
  mlp,
  recurrent,
  resnet,
  resnet_3d,
  transformer,
  vit,
)
from locojax.train import experiment, optimizers, replicas

NAN = float("nan")
_ONE_TOWER = {
  "width": 8,
  "num_layers": 1,
  "num_heads": 2,
  "hidden_size": 8,
  "patch_size": 4,
  "vocab_size": 10,
}
_LM = {
  "vocab_size": 7,
  "max_len": 4,
  "num_layers": 1,
  "num_heads": 2,
  "model_size": 4,
}


def _init(module, *inputs, **settings):
  """The shapes of a module's parameters."""
  key = jax.random.key(0)
  keys = {"params": key, "gating": key}
  jax.eval_shape(lambda: module.init(keys, *inputs, **settings))


def _tokens():
  return jnp.zeros((1, 2), jnp.int32)


def _images():
  return jnp.zeros((1, 8, 8, 3))


def _clips(**changes):
  settings = {"stage_sizes": (1,), **changes}
  net = resnet_3d.ResNet3D(2, **settings)
  _init(net, jnp.zeros((1, 4, 8, 8, 3)), train=False)


def _tower(**changes):
  _init(limoe.OneTower(**{**_ONE_TOWER, **changes}), _images(), _tokens())


def _lm(**changes):
  _init(lm.DecoderLM(**{**_LM, **changes}), _tokens())


def _moe(**changes):
  settings = {"num_experts": 2, "hidden_size": 4, **changes}
  _init(limoe.MoeMlp(**settings), jnp.zeros((1, 4, 4)), train=True)


def _words(**changes):
  settings = {"vocab_size": 9, "embedding_size": 4, "units": 4, **changes}
  _init(next_word.NextWordModel(**settings), _tokens())


def _experiment():
  return experiment.Experiment(
    init=None, step=None, batches=None, num_steps=1, batch_shapes={}
  )


def _server(**changes):
  settings = {
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "num_clients": 2,
    "key": jax.random.key(0),
    "max_rounds": 4,
    **changes,
  }
  return dp_ftrl.dp_ftrl(settings.pop("learning_rate", 0.1), **settings)


def _adaptive_matrix():
  clip = dp_ftrl.QuantileClip(
    1.0,
    optax.identity(),
    num_clients=2,
    starts_tree=lambda step: step == 0,
  )
  tx = _server(mechanism=matrix.sqrt_toeplitz(4))
  params = {"w": jnp.zeros(2)}
  dp_ftrl.init_state(params, tx, clip=clip, key=jax.random.key(1))


CALLS = [
  (lambda: _init(mlp.MLP((4, 0)), jnp.zeros((1, 2))), "features=(4, 0)"),
  (lambda: _init(mlp.MLP((4,), dtype="f33"), jnp.zeros((1, 2))), "dtype='f33'"),
  (lambda: _init(mlp.MLP((4,), dtype="int32"), jnp.zeros((1, 2))), "'int32'"),
  (lambda: _init(mlp.WeightNormDense(0), jnp.zeros((1, 2))), "features=0"),
  (
    lambda: _init(mlp.Autoencoder(2, (3,), -1), jnp.zeros((1, 2))),
    "code_size=-1",
  ),
  (
    lambda: _init(mlp.Autoencoder(2, (0,), 1), jnp.zeros((1, 2))),
    "hidden=(0,)",
  ),
  (lambda: _lm(vocab_size=0), "vocab_size=0"),
  (lambda: _lm(model_size=-4), "model_size=-4"),
  (lambda: _lm(hidden_size=0), "hidden_size=0"),
  (lambda: _lm(num_heads=0), "num_heads=0"),
  (lambda: _lm(dtype="float33"), "dtype='float33'"),
  (
    lambda: _init(transformer.FeedForward(0), jnp.zeros((1, 2, 4))),
    "hidden_size=0",
  ),
  (lambda: _init(vit.PatchEmbed(0, 4), _images()), "patch_size=0"),
  (lambda: _init(vit.PatchEmbed(4, 0), _images()), "size=0"),
  (
    lambda: _init(recurrent.Recurrent(4, dtype="x"), jnp.zeros((1, 2, 4))),
    "dtype='x'",
  ),
  (
    lambda: _init(resnet.PreActResNet(2, dtype="x"), _images(), train=False),
    "dtype='x'",
  ),
  (lambda: _clips(dtype="x"), "dtype='x'"),
  (lambda: _clips(width=-1), "width=-1"),
  (lambda: _tower(width=0), "width=0"),
  (lambda: _tower(num_heads=3), "width=8"),
  (lambda: _tower(embed_dim=0), "embed_dim=0"),
  (lambda: _tower(temperature_init=NAN), "temperature_init=nan"),
  (lambda: _tower(dtype="bf16"), "dtype='bf16'"),
  (lambda: _moe(capacity_factor=NAN), "capacity_factor=nan"),
  (lambda: _moe(multiple_of=0), "multiple_of=0"),
  (lambda: _moe(group_size=0), "group_size=0"),
  (lambda: _moe(top_k=1.5), "top_k=1.5"),
  (lambda: _words(units=0), "units=0"),
  (lambda: _words(dtype="x"), "dtype='x'"),
  (
    lambda: replicas.from_experiment(_experiment(), num_replicas=0, vary=()),
    "num_replicas=0",
  ),
  (
    lambda: replicas.from_experiment(
      _experiment(), num_replicas=2, vary=(), how="pmap"
    ),
    "how='pmap'",
  ),
  (
    lambda: optimizers.make("adam", learning_rate=NAN),
    "learning_rate=nan",
  ),
  (lambda: _server(learning_rate=NAN), "learning_rate=nan"),
  (lambda: _server(momentum="much"), "momentum='much'"),
  (
    lambda: dp_ftrl.server_sgd(-1.0, num_clients=2),
    "learning_rate=-1.0",
  ),
  (_adaptive_matrix, "QuantileClip(...) is not allowed"),
  (lambda: matrix.fit_blt(0), "num_rounds=0"),
  (lambda: accounting.zcdp_to_eps(1.0, "small"), "delta='small'"),
  (lambda: accounting.zcdp_to_eps(1.0, 1), "delta=1"),
  (lambda: participation.ShuffledEpochs(4, 5, seed=0), "cohort_size=5"),
  (lambda: checks.divisible("groups", 6, "by", 0), "by=0"),
]


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[w for _, w in CALLS])
def test_a_bad_argument_is_refused(call, words):
  with pytest.raises(ValueError) as error:
    call()
  assert words in str(error.value)


@pytest.mark.parametrize("name", ["sqrt_toeplitz", "blt"])
def test_one_round_is_a_round(name):
  """The strategies of several rounds add plain noise in a single one."""
  made = matrix.sqrt_toeplitz(1)
  if name == "blt":
    made = matrix.blt(*matrix.fit_blt(1))
  z = {"w": jnp.ones(3)}
  out, _ = made.next(z, made.init(z), jnp.int32(0))
  assert out["w"].tolist() == [1.0, 1.0, 1.0]
