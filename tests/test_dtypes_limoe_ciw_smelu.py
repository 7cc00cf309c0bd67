"""LIMoE, CIW and SmeLU in every dtype, without x64 and with it.

Losses, weights and metrics are computed in float32, or in float64 for float64:
they agree with a float64 computation on the same (rounded) inputs to digits of
float32, whatever the dtype of the inputs. Modules compute in their own dtype
and agree in its accuracy. Gradients have the dtype of what they belong to.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import arrays, labels, metrics
from locojax.methods import ciw, limoe, smelu
from locojax.methods.limoe import auxiliary, dispatch, routing
from locojax.methods.smelu import recommender

N, K, D = 6, 4, 4
COMBINATIONS = [
  (dtype, x64)
  for dtype in ("bfloat16", "float16", "float32", "float64")
  for x64 in (False, True)
  if x64 or dtype != "float64"
]
# Relative to the largest entry: of losses, and of modules and gradients.
EXACT = {"float64": 1e-9}
OWN = {"bfloat16": 4e-2, "float16": 5e-3, "float32": 1e-4, "float64": 1e-9}


def _normal(*shape, seed):
  return np.random.default_rng(seed).normal(size=shape)


def _softmax(x):
  return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


Y = np.arange(N, dtype=np.int32) % K
MASK = np.array([1, 1, 0, 1, 1, 1], np.int32)


def _limoe_losses(x):
  a, z, gates = auxiliary, x["logits"], x["gates"]
  soft, _ = limoe.contrastive_softmax_loss(x["image"], x["text"], x["t"])
  sigmoid, found = limoe.contrastive_sigmoid_loss(
    x["image"], x["text"], x["t"], x["bias"], mask=MASK, max_scale=1.2
  )
  out = {"softmax": soft, "sigmoid": sigmoid, **found}
  for mask in (None, MASK):
    out |= {
      f"importance{mask is None}": a.importance_loss(gates, mask=mask),
      f"load{mask is None}": a.load_loss(
        z, z, noise_std=0.5, top_k=2, mask=mask
      ),
      f"gshard{mask is None}": a.gshard_loss(gates, mask=mask),
      f"z{mask is None}": a.router_z_loss(z, mask=mask),
      f"information{mask is None}": a.mutual_information(z, mask=mask),
      f"global{mask is None}": a.global_entropy_loss(
        z, soft_min_experts=4, mask=mask
      ),
    }
  there, back = routing.soft_moe_weights(
    x["image"], x["slots"], x["t"], valid=MASK != 0
  )
  return {**out, "there": there[:, 0], "back": back[:, 0]}


LAYERS = {
  "top_k": limoe.MoeMlp(2, 3, top_k=2, share_init=False),
  "choice": limoe.MoeMlp(2, 3, router="expert_choice", capacity_factor=2.0),
  "soft": limoe.MoeMlp(2, 3, router="soft", slots_per_expert=2),
}
TOWER = limoe.OneTower(
  width=4,
  num_layers=1,
  num_heads=2,
  hidden_size=4,
  patch_size=2,
  vocab_size=5,
  max_text_len=3,
)


def _limoe_layer(x, *, of, **changes):
  layer = LAYERS[of].copy(**changes)
  y, info = layer.apply(
    {"params": x[of]}, x["tokens"], train=False, mask=MASK[None]
  )
  return {"y": y, "logits": info.logits}


def _limoe_tower(x):
  z = TOWER.apply({"params": x["tower"]}, x["images"], jnp.array([[0, 3, 1]]))
  return {"z_image": z.z_image, "z_text": z.z_text}


def _ciw(x):
  config, out = ciw.InstanceConfig(lam=0.5), {}
  for divergence in ("tv", "l2"):
    class_ = ciw.ClassConfig(divergence, 0.1)
    loss, aux = ciw.ciw_loss(
      x["logits"], Y, instance=config, class_=class_, mask=MASK
    )
    out |= {divergence: loss, f"{divergence}_weights": aux["weights"]}
    out |= {
      f"{divergence}_classes": aux["class_weights"],
      f"{divergence}_ess": aux["ess"],
    }
  soft, _ = ciw.ciw_loss(
    x["logits"],
    jax.lax.stop_gradient(x["gates"]),
    instance=ciw.InstanceConfig(divergence="chi2", radius=0.2),
    class_=ciw.ClassConfig("kl", 0.1),
  )
  binary, _ = ciw.ciw_binary_loss(x["logits"][:, 0], Y % 2, instance=config)
  losses = jnp.square(arrays.as_float(x["logits"][:, 0]))
  return {
    **out,
    "soft": soft,
    "binary": binary,
    "renyi": ciw.instance_weights(
      losses, divergence="renyi", alpha=2.0, radius=0.3
    ),
    "inner": ciw.inner_losses(x["logits"], Y, divergence="l1", gamma=0.3),
  }


def _ciw_modules(x):
  """Mixup, and per-example gradients: as their inputs."""
  mixed = ciw.ciw_mixup(
    jax.random.key(0), x["logits"], Y, np.arange(1.0, N + 1, dtype=np.float32),
    mode="sample_weight", num_classes=K,
  )  # fmt: skip
  tx = ciw.reweight_per_example_grads(ciw.InstanceConfig(lam=2.0))
  losses = jnp.square(x["logits"][:, 0])
  updates, _ = tx.update(x["logits"], tx.init(None), losses=losses)
  return {"mixed": mixed.inputs, "updates": updates}


def _smelu_metrics(x):
  preds = jnp.stack([x["gates"], x["gates"][:, ::-1]])
  two = x["two"].T
  out = {
    "pd_1": smelu.prediction_difference(preds, weights=MASK),
    "pd_2": smelu.prediction_difference(two, 2),
    "pairwise": smelu.pairwise_prediction_difference(preds),
    "relative": smelu.relative_prediction_difference(two),
    "signed": smelu.signed_prediction_difference(two),
    "hellinger": smelu.hellinger_prediction_difference(preds),
    "logit": smelu.logit_difference(preds),
    "label": smelu.label_prediction_difference(preds, Y),
    "log_loss": smelu.log_loss(preds, Y, MASK),
    "ensemble": smelu.ensemble(two, 2),
    "entropy": labels.cross_entropy(x["logits"], Y),
    "mean": metrics.mean(x["logits"], MASK).value(),
  }
  dtype = arrays.wide(two.dtype)
  sums = smelu.PDAccumulator.init(2, labelled=True, dtype=dtype)
  found = sums.update(two, Y % 2, weights=MASK).compute()
  return {**out, **{f"sum_{n}": v for n, v in found.items()}}


MODULES = {
  "smelu": smelu.SmeLU(trainable=True, per_channel=True),
  "gsmelu": smelu.GSmeLU(trainable=True, negative_slope=0.1),
}
WITH_A_KINK = ("relu", "elu", "selu")


def _smelu_modules(x):
  out = {
    name: smelu.get_activation(name)(x["logits"])
    for name in smelu.activation_names()
    if name not in WITH_A_KINK
  }
  for name, module in MODULES.items():
    made = module.apply({"params": x[name]}, x["logits"])
    out[f"module_{name}"] = made
  return out


CTR = recommender.CTRModel((3, 3), dim=2, hidden=(3,))
IDS = np.stack([Y % 3, Y[::-1] % 3], axis=1)


def _clicks(x):
  batch = {"categorical": IDS, "numeric": x["numeric"], "label": Y % 2}
  batch["mask"] = MASK
  loss, _ = recommender.make_loss(CTR)(x["ctr"], {}, batch, jax.random.key(0))
  predict = recommender.make_predict(CTR)
  return {"loss": loss, "predictions": predict(x["ctr"], {}, batch)}


@functools.cache
def _inputs() -> dict:
  """In float64, the gates far enough apart for every order to be clear."""
  gates = _softmax(np.argsort(_normal(N, K, seed=0), axis=1) + 0.0)
  made = {
    "logits": _normal(N, K, seed=1),
    "gates": gates,
    "two": _sigmoid(_normal(N, 2, seed=2)),
    "image": _normal(N, D, seed=3),
    "text": _normal(N, D, seed=4),
    "t": np.array(0.4),
    "bias": np.array(-1.0),
    "slots": _normal(D, 2, 2, seed=5),
    "tokens": _normal(1, N, D, seed=6),
    "images": _normal(1, 4, 4, 1, seed=7),
    "numeric": _normal(N, 2, seed=8),
  }
  key, text = jax.random.key(0), jnp.zeros((1, 3), jnp.int32)
  shapes = lambda f, *x, **k: jax.eval_shape(
    lambda key: f(key, *x, **k)["params"], key
  )
  given = lambda name: jnp.float32(made[name])
  params = {
    n: shapes(m.init, given("tokens"), train=False) for n, m in LAYERS.items()
  }
  params["tower"] = shapes(TOWER.init, given("images"), text)
  params |= {n: shapes(m.init, given("logits")) for n, m in MODULES.items()}
  params["ctr"] = shapes(
    CTR.init, jnp.zeros((1, 2), jnp.int32), given("numeric")[:1]
  )
  draw = lambda s: 0.5 * _normal(*s.shape, seed=len(s.shape))
  return {**made, **jax.tree.map(draw, params)}


# Function, names of its inputs, whether it computes in the dtype of these.
TABLE = {
  "limoe losses": (
    _limoe_losses,
    ("logits", "gates", "image", "text", "t", "bias", "slots"),
    False,
  ),
  **{
    f"limoe {name}": (
      functools.partial(_limoe_layer, of=name),
      ("tokens", name),
      True,
    )
    for name in LAYERS
  },
  **{
    f"limoe {name}": (
      functools.partial(_limoe_layer, of="top_k", dispatcher=name),
      ("tokens", "top_k"),
      True,
    )
    for name in ("einsum", "ragged", "dense")
  },
  "limoe tower": (_limoe_tower, ("images", "tower"), True),
  "ciw losses": (_ciw, ("logits", "gates"), False),
  "ciw modules": (_ciw_modules, ("logits",), True),
  "smelu metrics": (_smelu_metrics, ("gates", "two", "logits"), False),
  "smelu modules": (_smelu_modules, ("logits", *MODULES), True),
  "smelu clicks": (_clicks, ("numeric", "ctr"), True),
}


def _rounded(name: str, dtype: str):
  """The inputs of a row in a dtype, as NumPy arrays."""
  x = {n: _inputs()[n] for n in TABLE[name][1]}
  return jax.tree.map(lambda a: a.astype(jnp.dtype(dtype)), x)


def _values(f, x):
  """Values, and the gradients of their sum."""

  def total(x):
    out = f(x)
    leaves = [jnp.sum(arrays.as_float(v)) for v in jax.tree.leaves(out)]
    return sum(leaves), out

  grads, out = jax.jit(jax.grad(total, has_aux=True))(x)
  return out, grads


@functools.cache
def _reference(name: str, dtype: str):
  wide = jax.tree.map(lambda a: a.astype(np.float64), _rounded(name, dtype))
  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, _values(TABLE[name][0], wide))


def _near(found, wanted, tolerance, name):
  found = np.asarray(found).astype(np.float64)
  atol = tolerance * max(1e-3, np.abs(wanted).max(initial=0.0))
  np.testing.assert_allclose(
    found, wanted, rtol=tolerance, atol=atol, err_msg=name
  )


def _cases() -> list:
  """All rows in all combinations, of which the longest have two by default."""
  out = []
  for name in TABLE:
    for dtype, x64 in COMBINATIONS:
      quick = not name.startswith(_LONG) or (dtype, x64) in _QUICK
      marks = () if quick else pytest.mark.slow
      out.append(pytest.param(name, dtype, x64, marks=marks))
  return out


_LONG = tuple(
  f"limoe {name}" for name in (*LAYERS, "einsum", "ragged", "dense", "tower")
)
_QUICK = (("bfloat16", False), ("float64", True))


@pytest.mark.parametrize(("name", "dtype", "x64"), _cases())
def test_every_dtype_gives_its_accuracy(name, dtype, x64):
  _inputs()
  wanted, wanted_grads = _reference(name, dtype)
  own = TABLE[name][2]
  with jax.enable_x64(x64):
    out, grads = _values(TABLE[name][0], _rounded(name, dtype))
    tolerance = OWN[dtype] if own else EXACT.get(dtype, 2e-5)
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(out), jax.tree.leaves(wanted)
    )
    for (path, found), value in pairs:
      key = jax.tree_util.keystr(path)
      if not own:
        assert found.dtype == arrays.wide(jnp.dtype(dtype)), key
      _near(found, value, tolerance, key)
    pairs = zip(
      jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(wanted_grads)
    )
    for (path, found), value in pairs:
      key = jax.tree_util.keystr(path)
      assert found.dtype == jnp.dtype(dtype), key
      _near(found, value, 2 * OWN[dtype], key)


def test_activations_and_layers_keep_the_dtype():
  for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
    x = jnp.linspace(-2, 2, N * K).reshape(N, K).astype(dtype)
    for name in smelu.activation_names():
      assert smelu.get_activation(name)(x).dtype == dtype, name
    assert (
      dispatch.apply_soft(
        x[None], (jnp.ones((1, N, 2, 1)),) * 2, lambda rows: rows
      ).dtype
      == dtype
    )
