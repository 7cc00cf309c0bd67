"""Masked is removed, in values and gradients, whatever stands under the mask.

One table over the routers, dispatchers, losses, modules and metrics of the
house. Every row is computed three times: with NaN, infinities and impossible
integers under the mask; with what is masked taken out; with all masked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import arrays, class_masks, labels, metrics
from locojax.methods import ciw, continual, l2p, limoe, minerva, smelu
from locojax.methods.ciw import instance as ciw_instance
from locojax.methods.limoe import auxiliary, dispatch, routing
from locojax.methods.smelu import recommender
from locojax.nn import attention, mlp, parallel, recurrent, transformer
from tests import programs
from tests.methods.completion import small
from tests.methods.spl import small as spl_small
from tests.nn import resnets

KEY = jax.random.key(0)
# The last rows, so that a position of what is left does not move.
MASK = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.int32)
N, LEFT, E, D = 8, 5, 4, 4
GARBAGE = (np.nan, np.inf, -np.inf)


@dataclasses.dataclass(frozen=True)
class Row:
  """A function of the house.

  Attributes:
    f: `(params, inputs, mask) -> {name: values}`, 0 or absent at masked rows.
    inputs: name -> `[8, ...]`, the rows being what is masked.
    params: what is trained besides.
    empty: the values with all masked: `finite`, or `nan` for metrics, of which
      there is none.
    still: whether with all masked no gradient reaches the parameters.
  """

  f: Callable[..., dict[str, Any]]
  inputs: dict[str, np.ndarray]
  params: Any = ()
  empty: str = "finite"
  still: bool = True


def _normal(*shape, seed=0):
  return np.asarray(jax.random.normal(jax.random.key(seed), shape))


def _classes(num=E):
  return np.arange(N, dtype=np.int32) % num


def _auxiliary(params, inputs, mask):
  del params
  x, gates, a = inputs["logits"], inputs["gates"], auxiliary
  return {
    "importance": a.importance_loss(gates, mask=mask),
    "load": a.load_loss(x, gates, noise_std=0.3, top_k=2, mask=mask),
    "gshard": a.gshard_loss(gates, mask=mask),
    "z": a.router_z_loss(x, mask=mask),
    "local": a.local_entropy_loss(x, mask=mask),
    "mean": a.mean_gate_entropy(x, mask=mask),
    "global": a.global_entropy_loss(x, soft_min_experts=4, mask=mask),
    "information": a.mutual_information(x, mask=mask),
  }


def _routers(params, inputs, mask):
  """The routers' weights, without what they are applied to."""
  slots, valid, gates = params, mask != 0, inputs["gates"]
  top = routing.route_top_k(
    gates, top_k=2, capacity=3, priority="sum", valid=valid
  )
  biased = routing.route_top_k(
    gates, top_k=1, capacity=2, selection=gates[:, ::-1], valid=valid
  )
  choice = routing.route_expert_choice(gates, capacity=3, valid=valid)
  there, back = routing.soft_moe_weights(inputs["x"], slots, 2.0, valid=valid)
  served = lambda a: jnp.where(a.kept, a.weight, 0.0)
  return {
    "top": served(top).sum(axis=1)[:LEFT],
    "top_kept": top.kept.sum(),
    "biased": served(biased).sum(axis=1)[:LEFT],
    "choice": choice.weight.sum(axis=1),
    "soft_there": jnp.square(there).sum(axis=(0, 2)),
    "soft_back": jnp.square(back).sum(axis=(1, 2))[:LEFT],
  }


def _dispatched(params, inputs, mask):
  """All ways to the experts, given routes that know the mask."""
  x, gates, valid = inputs["x"][None], inputs["gates"], mask != 0
  safe = jnp.where(valid[:, None], gates, 0.0)
  route = routing.route_top_k(safe, top_k=2, capacity=3, valid=valid)
  route = jax.tree.map(lambda a: a[None], route)
  whole = lambda rows: jnp.einsum("end,edf->enf", jnp.tanh(rows), params)
  ragged = lambda rows, sizes: jax.lax.ragged_dot(jnp.tanh(rows), params, sizes)
  out = {}
  for name in dispatch.DISPATCHERS:
    experts = ragged if name == "ragged" else whole
    out[name] = dispatch.apply_experts(
      x, route, experts, num_experts=E, capacity=3, dispatcher=name
    )
  choice = routing.route_expert_choice(safe, capacity=3, valid=valid)
  choice = jax.tree.map(lambda a: a[None], choice)
  out["choice"] = dispatch.apply_expert_choice(x, choice, whole)
  soft = routing.soft_moe_weights(
    jnp.where(valid[:, None], inputs["x"], 0.0), params[..., :2], valid=valid
  )
  soft = tuple(a[None] for a in soft)
  out["soft"] = dispatch.apply_soft(x, soft, whole)
  return {n: jnp.sin(y).sum(axis=(0, 1)) for n, y in out.items()}


AUX = limoe.LimoeAux(
  importance=1.0,
  gshard=1.0,
  z=1.0,
  local={"text": 1.0},
  global_={"image": 1.0, "text": 1.0},
)


def _layer_row(**changes):
  settings = {"num_experts": E, "hidden_size": 3, **changes}
  layer = limoe.MoeMlp(**settings, share_init=False)
  x = _normal(N, D)
  params = programs.init(layer, KEY, x[None], train=False)["params"]

  def f(params, inputs, mask):
    y, info = layer.apply(
      {"params": params}, inputs["x"][None], train=False, mask=mask[None]
    )
    modality = jnp.arange(len(mask))[None] % 2
    loss, _ = limoe.auxiliary_loss([info], modality, AUX, mask=mask[None])
    found = limoe.routing_metrics([info], modality, mask=mask[None])
    return {
      "y": jnp.sin(y).sum(axis=(0, 1)),
      "loss": loss,
      **{n: jax.lax.stop_gradient(m.total) for n, m in found.items()},
      **limoe.expert_table(info, modality, mask=mask[None]),
    }

  return Row(f, {"x": x}, params)


def _tower_row():
  net = limoe.OneTower(
    width=4, num_layers=1, num_heads=2, hidden_size=4, patch_size=2,
    vocab_size=9, max_text_len=N, moe_layers=(0,),
    experts={"num_experts": 2, "noise_std": 0.0},
  )  # fmt: skip
  text = np.arange(N, dtype=np.int32)
  params = programs.init(net, KEY, None, text[None])["params"]

  def f(params, inputs, mask):
    z = net.apply({"params": params}, None, inputs["text"][None], mask[None])
    return {"z": z.z_text}

  return Row(f, {"text": text}, params, still=False)


def _contrast(params, inputs, mask):
  (t, bias), (a, b) = params, (inputs["image"], inputs["text"])
  soft, found = limoe.contrastive_softmax_loss(a, b, t, mask=mask)
  sigmoid, more = limoe.contrastive_sigmoid_loss(a, b, t, bias, mask=mask)
  hits = {
    n: m.total for n, m in (*found.items(), ("sigmoid_hits", *more.values()))
  }
  return {"softmax": soft, "sigmoid": sigmoid, **hits}


def _attend(params, inputs, mask):
  out = attention.attend(
    params,
    inputs["key"][None],
    inputs["value"][None],
    mask[None, None, None] != 0,
  )
  return {"out": out}


def _module_row(module, x, call):
  params = programs.init(module, KEY, x[None])["params"]

  def f(params, inputs, mask):
    y = call(module, {"params": params}, inputs["x"][None], mask[None])
    return {"y": jnp.where(mask[None, :, None] != 0, jnp.sin(y), 0).sum((0, 1))}

  return Row(f, {"x": x}, params)


def _valid(module, variables, x, mask):
  return module.apply(variables, x, valid=mask != 0)


def _recurrent(module, variables, x, mask):
  y, carry = module.apply(variables, x, valid=mask)
  return y + jnp.where(mask.any(), carry.h.sum(), 0.0)


def _normalised_row(module, x, **train):
  variables = programs.init(module, KEY, x, **train)

  def f(params, inputs, mask):
    y, new = module.apply(
      {**variables, "params": params},
      inputs["x"],
      mask=mask,
      train=True,
      mutable=["batch_stats"],
    )
    y = arrays.kept(jnp.sin(y), mask).sum(axis=0)
    stats = jax.lax.stop_gradient(jax.tree.leaves(new))
    return {"y": y, **{f"statistic {i}": s for i, s in enumerate(stats)}}

  return Row(f, {"x": x}, variables["params"])


CONFIG = ciw.InstanceConfig(lam=0.5)


def _ciw(params, inputs, mask):
  del params
  out = {}
  for name, z, y in (
    ("hard", inputs["logits"], inputs["labels"]),
    ("soft", inputs["logits"], inputs["rows"]),
  ):
    for divergence in ("tv", "l2"):
      class_ = ciw.ClassConfig(divergence, 0.1)
      loss, aux = ciw.ciw_loss(z, y, instance=CONFIG, class_=class_, mask=mask)
      out |= {
        f"{name}_{divergence}": loss,
        f"{name}_{divergence}_ess": aux["ess"],
      }
  loss, _ = ciw.ciw_binary_loss(
    inputs["logits"][:, 0], inputs["labels"] % 2, instance=CONFIG, mask=mask
  )
  return {**out, "binary": loss}


def _instance(params, inputs, mask):
  del params
  losses, out = jnp.square(inputs["x"]), {}
  for name in ciw_instance.DIVERGENCES:
    alpha = 1.5 if name in ("alpha", "renyi") else None
    weigh = functools.partial(
      ciw.instance_weights, losses, divergence=name, alpha=alpha, mask=mask
    )
    for setting in ({"lam": 0.7}, {"radius": 0.1}):
      weights = weigh(**setting)
      out[f"{name}{setting}"] = weights[:LEFT]
  out["lambda"] = ciw.lambda_for_radius(losses, 0.1, mask=mask)
  out["uniform"] = ciw.uniform_weights(losses, mask=mask)[:LEFT]
  return out


def _reweighted(params, inputs, mask):
  batch = {"x": inputs["x"], "label": inputs["labels"], "mask": mask}

  def logits_of(params, state, batch, key):
    return batch["x"] @ params, ({}, state)

  def losses_of(params, state, batch, key):
    return jnp.square(batch["x"] @ params).sum(axis=1), ({}, state)

  a, _ = ciw.reweight_logits(logits_of, CONFIG)(params, {}, batch, KEY)
  b, _ = ciw.reweight(losses_of, CONFIG)(params, {}, batch, KEY)
  return {"logits": a, "losses": b}


def _per_example(params, inputs, mask):
  del params
  tx = ciw.reweight_per_example_grads(CONFIG)
  losses = jnp.square(inputs["x"][:, 0])
  out, _ = tx.update(inputs["x"], tx.init(None), losses=losses, mask=mask)
  return {"gradient": out}


def _differences(params, inputs, mask):
  del params
  out = {}
  for name, preds in (
    ("two", inputs["two"].T),
    ("many", inputs["many"].swapaxes(0, 1)),
  ):
    y = inputs["labels"] % (2 if name == "two" else E)
    for fn in (
      *(functools.partial(smelu.prediction_difference, p=p) for p in (1, 2, 3)),
      smelu.pairwise_prediction_difference,
      smelu.relative_prediction_difference,
      functools.partial(smelu.relative_prediction_difference, mode="deviation"),
      smelu.signed_prediction_difference,
      smelu.hellinger_prediction_difference,
      smelu.disagreement,
      smelu.logit_difference,
    ):
      out[f"{name}{len(out)}"] = fn(preds, weights=mask)
    for fn in (
      smelu.label_prediction_difference,
      smelu.relative_label_prediction_difference,
      smelu.log_loss,
    ):
      out[f"{name}{len(out)}"] = fn(preds, y, weights=mask)
  return out


def _streams(params, inputs, mask):
  del params
  preds, y = inputs["two"].T, inputs["labels"] % 2
  found = smelu.PDAccumulator.init(3, labelled=True)
  out = found.update(preds, y, weights=mask).compute()
  del out["lowest_prediction"]
  area = smelu.HistogramAUC.init(64).update(preds[0], y, mask).compute()
  return {**out, "auc": jax.lax.stop_gradient(area)}


CTR = recommender.CTRModel(
  (4, 4), dim=2, hidden=(3,), normalization="batch", numeric="log1p"
)


def _clicks(params, inputs, mask):
  state = jax.eval_shape(
    lambda: recommender.init(CTR, key=KEY, num_numeric=2)[1]
  )
  state = jax.tree.map(lambda s: jnp.ones(s.shape), state)
  batch = {**inputs, "mask": mask}
  loss, (found, new) = recommender.make_loss(CTR)(params, state, batch, KEY)
  del new
  return {"loss": loss, **{n: m.total for n, m in found.items()}}


def _clicks_row():
  inputs = {
    "categorical": np.stack([_classes(), _classes()], axis=1),
    "numeric": _normal(N, 2),
    "label": np.float32(_classes(2)),
  }
  make = jax.jit(lambda k: recommender.init(CTR, key=k, num_numeric=2))
  params, _ = make(KEY)
  return Row(_clicks, inputs, params)


def _core(params, inputs, mask):
  x, y = inputs["logits"], inputs["labels"]
  each = labels.cross_entropy(x, y, mask)
  return {
    "mean": params * metrics.mean(x, mask).loss(),
    "entropy": metrics.mean(each, mask).loss(),
    "accuracy": metrics.accuracy(x, y, mask).total,
    "top": metrics.top_k_accuracy(x, y, 2, mask).total,
  }


def _continual(params, inputs, mask):
  x, y = inputs["logits"], inputs["labels"]
  contrast = continual.asymmetric_contrast(
    x, y, anchors=np.ones(len(y)), mask=mask
  )
  relations = continual.relation_distillation(x, 2 * x, mask=mask)
  each, _ = class_masks.masked_cross_entropy(x, y, [0, 1, 2, 3], mask=mask)
  return {
    "each": params * each.sum(),
    "cross_entropy": continual.masked_cross_entropy(x, y, mask=mask)[0],
    "contrast": contrast.loss(),
    "relations": relations.loss(),
  }


def _prompts(params, inputs, mask):
  chosen = l2p.select_prompts(inputs["x"], params, 2, mask=mask)
  return {"keys": l2p.key_surrogate_loss(chosen, mask=mask)}


def _means(params, inputs, mask):
  x, y = inputs["logits"], inputs["labels"]
  del params
  return {
    "mean": metrics.mean(x, mask).value(),
    "accuracy": metrics.accuracy(x, y, mask).value(),
    "lm_loss": minerva.lm_loss(x, y, mask).nll.value(),
  }


def _layers() -> dict[str, Callable[[], Row]]:
  """Rows of layers and networks."""
  return {
    "attention": lambda: _module_row(
      attention.MultiHeadAttention(2, causal=True), _normal(N, D), _valid
    ),
    "stack": lambda: _module_row(
      transformer.Stack(1, 2, 4), _normal(N, D), _valid
    ),
    **{
      f"parallel_{fused}": lambda fused=fused: _module_row(
        parallel.ParallelStack(1, 2, 4, num_kv_heads=1, fused=fused),
        *(_normal(N, D), _valid),
      )
      for fused in (False, True)
    },
    "recurrent": lambda: _module_row(
      recurrent.Recurrent(3), _normal(N, D), _recurrent
    ),
    "mlp": lambda: _normalised_row(
      mlp.MLP((3, 2), normalization="batch"), _normal(N, D)
    ),
    **{
      name: lambda net=net, shape=shape: _normalised_row(
        net, _normal(N, *shape), train=True
      )
      for name, (net, shape) in resnets.SMALLEST.items()
    },
  }


def _table() -> dict[str, Callable[[], Row]]:
  gates = lambda: np.asarray(jax.nn.softmax(_normal(N, E)))
  logits = lambda: _normal(N, E, seed=3)
  two = lambda: np.asarray(jax.nn.sigmoid(_normal(N, 3, seed=4)))
  many = lambda: np.asarray(jax.nn.softmax(_normal(N, 3, E, seed=5)))
  weights = lambda: _normal(E, D, D, seed=6)
  rows = {
    **_layers(),
    "auxiliary": lambda: Row(
      _auxiliary, {"logits": logits(), "gates": gates()}
    ),
    "routers": lambda: Row(
      _routers, {"gates": gates(), "x": _normal(N, D)}, _normal(D, E, 2, seed=7)
    ),
    "dispatchers": lambda: Row(
      _dispatched, {"gates": gates(), "x": _normal(N, D)}, weights()
    ),
    "expert_choice": lambda: _layer_row(
      router="expert_choice", capacity_factor=1.0
    ),
    "soft": lambda: _layer_row(router="soft", slots_per_expert=2),
    "tower": _tower_row,
    "contrastive": lambda: Row(
      _contrast,
      {"image": _normal(N, D), "text": _normal(N, D, seed=1)},
      (jnp.float32(0.3), jnp.float32(-1.0)),
    ),
    "attend": lambda: Row(
      _attend,
      {"key": _normal(N, 2, D), "value": _normal(N, 2, D, seed=1)},
      _normal(1, 3, 2, D, seed=2),
    ),
    "ciw_loss": lambda: Row(
      _ciw, {"logits": logits(), "labels": _classes(), "rows": gates()}
    ),
    "instance_weights": lambda: Row(_instance, {"x": _normal(N)}),
    "reweight": lambda: Row(
      _reweighted, {"x": _normal(N, D), "labels": _classes()}, _normal(D, E)
    ),
    "per_example": lambda: Row(_per_example, {"x": _normal(N, D)}),
    "differences": lambda: Row(
      _differences,
      {"two": two(), "many": many(), "labels": _classes()},
      empty="nan",
    ),
    "streams": lambda: Row(
      _streams, {"two": two(), "labels": _classes()}, empty="nan"
    ),
    "clicks": _clicks_row,
    "completion": lambda: Row(*small.masked(N)),
    "spl": lambda: Row(*spl_small.masked(N)),
    **{
      name: lambda f=f: Row(
        f, {"logits": logits(), "labels": _classes()}, jnp.float32(1.5)
      )
      for name, f in (("core", _core), ("continual", _continual))
    },
    "prompts": lambda: Row(_prompts, {"x": _normal(N, D)}, _normal(5, D)),
    "means": lambda: Row(
      _means, {"logits": logits(), "labels": _classes()}, empty="nan"
    ),
  }
  for name in dispatch.DISPATCHERS:
    rows[f"layer_{name}"] = lambda name=name: _layer_row(dispatcher=name)
  return rows


TABLE = _table()


def _spoilt(x: np.ndarray) -> np.ndarray:
  """Garbage in the masked rows."""
  x = np.array(x)
  for row, value in zip(np.flatnonzero(MASK == 0), GARBAGE):
    x[row] = value if x.dtype.kind == "f" else 10**6 if value > 0 else -7
  return x


def _runner(row: Row):
  def total(params, inputs, mask):
    values = row.f(params, inputs, mask)
    parts = [(1 + 0.1 * i) * jnp.sum(v) for i, v in enumerate(values.values())]
    return sum(parts), values

  grad = jax.grad(total, argnums=(0, 1), has_aux=True, allow_int=True)
  return jax.jit(grad)


def _floats(tree):
  """Leaves with a gradient, which integers have not."""
  return {
    jax.tree_util.keystr(k): np.asarray(g)
    for k, g in jax.tree_util.tree_leaves_with_path(tree)
    if g.dtype != jax.dtypes.float0
  }


def _close(found, wanted, name):
  np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", TABLE)
def test_masked_is_removed(name):
  row = TABLE[name]()
  run = _runner(row)
  spoilt = {n: _spoilt(x) for n, x in row.inputs.items()}
  (of_params, of_inputs), values = run(row.params, spoilt, MASK)
  left = {n: x[:LEFT] for n, x in row.inputs.items()}
  wanted, wanted_values = run(row.params, left, MASK[:LEFT])
  for key, value in wanted_values.items():
    _close(values[key], value, key)
  for key, g in _floats(of_params).items():
    _close(g, _floats(wanted[0])[key], key)
  for key, g in _floats(of_inputs).items():
    _close(g[:LEFT], _floats(wanted[1])[key], key)
    assert not g[LEFT:].any(), key
  (of_params, of_inputs), values = run(row.params, spoilt, 0 * MASK)
  for key, value in values.items():
    good = np.isnan if row.empty == "nan" else np.isfinite
    assert good(value).all(), key
  still = {**_floats(of_inputs), **(_floats(of_params) if row.still else {})}
  for key, g in still.items():
    assert not g.any(), key
  for key, g in _floats(of_params).items():
    assert np.isfinite(g).all(), key


def test_a_later_token_may_hold_anything_for_those_before():
  """With a causal mask a key is hidden from some queries, not from all."""
  q, k, v = (_normal(1, 4, 2, D, seed=i) for i in range(3))
  bad = [np.array(x) for x in (q, k, v)]
  for x, value in zip(bad, GARBAGE):
    x[:, -1] = value
  mask = attention.causal_mask(4)

  def early(q, k, v):
    out = attention.attend(q, k, v, mask[..., : q.shape[1], : k.shape[1]])
    return jnp.sin(out[:, :3]).sum(), out

  run = jax.jit(jax.grad(early, argnums=(0, 1, 2), has_aux=True))
  grads, out = run(*bad)
  wanted, wanted_out = run(*(x[:, :3] for x in (q, k, v)))
  _close(out[:, :3], wanted_out, "values")
  assert np.isnan(out[:, 3]).all()
  for g, w in zip(grads, wanted):
    _close(g[:, :3], w, "gradient")
    assert not g[:, 3].any()


def test_mixup_looks_at_no_masked_example():
  x, y = _normal(N, D), _classes()
  bad, bad_labels = _spoilt(x), _spoilt(y)
  weights = np.abs(_normal(N, seed=2))
  run = functools.partial(
    ciw.ciw_mixup, KEY, mode="sample_weight", num_classes=E, mask=MASK
  )
  a, b = run(x, y, weights), run(bad, bad_labels, _spoilt(weights))
  for field in ("inputs", "labels", "partners", "ratios"):
    live = slice(0, LEFT)
    _close(getattr(a, field)[live], getattr(b, field)[live], field)
