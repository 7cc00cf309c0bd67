"""Losses of a whole model, success rates and tables."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods.limoe import auxiliary, moe, reports
from tests import programs

KEY = jax.random.key(0)
MODALITY = jnp.broadcast_to((jnp.arange(16) >= 12).astype(jnp.int32), (3, 16))
MASK = jnp.broadcast_to((jnp.arange(16) < 14).astype(jnp.int32), (3, 16))
X = jax.random.normal(KEY, (3, 16, 5))


def _infos(train=True, **changes):
  layer = moe.MoeMlp(num_experts=4, hidden_size=6, **changes)
  rngs = {"gating": KEY}
  out = []
  for i in range(2):
    keys = {"params": jax.random.key(i), **rngs}
    variables = programs.init(layer, keys, X, train=True)
    run = functools.partial(programs.apply, layer, train=train, rngs=rngs)
    out.append(run(variables, X, mask=MASK)[1])
  return out


def test_terms_are_means_over_layers_and_add_up():
  infos = _infos()
  aux = reports.limoe_aux(4, {"image": 12, "text": 4})
  whole = lambda i: reports.auxiliary_loss(i, MODALITY, aux, mask=MASK)
  loss, terms = jax.jit(whole)(infos)
  text = (MODALITY == 1) & (MASK != 0)
  image = (MODALITY == 0) & (MASK != 0)

  def mean(f):
    run = jax.jit(f)
    return float(np.mean([run(i) for i in infos]))

  expected = {
    "importance": mean(
      lambda i: auxiliary.importance_loss(jax.nn.softmax(i.logits), mask=MASK)
    ),
    "load": mean(
      lambda i: auxiliary.load_loss(
        i.logits, i.noisy_logits, noise_std=1 / 4, top_k=1, mask=MASK
      )
    ),
    "z": mean(lambda i: auxiliary.router_z_loss(i.logits, mask=MASK)),
    "local/text": mean(
      lambda i: auxiliary.local_entropy_loss(i.logits, mask=text)
    ),
    "global/text": mean(
      lambda i: auxiliary.global_entropy_loss(
        i.logits, soft_min_experts=2, mask=text
      )
    ),
    "global/image": mean(
      lambda i: auxiliary.global_entropy_loss(
        i.logits, soft_min_experts=2, mask=image
      )
    ),
  }
  assert {k: float(v) for k, v in terms.items()} == pytest.approx(
    expected, rel=1e-4, abs=1e-6
  )
  weights = dict.fromkeys(expected, 0.04)
  weights |= {"importance": 0.005, "load": 0.005, "z": 1e-3}
  assert float(loss) == pytest.approx(
    sum(weights[k] * v for k, v in expected.items()), rel=1e-4
  )


def test_no_noise_no_load_loss_and_no_nan():
  infos = _infos(train=False)
  loss, terms = reports.auxiliary_loss(infos, MODALITY, reports.classic())
  assert float(terms["load"]) == 0 and np.isfinite(loss)
  assert reports.auxiliary_loss([], MODALITY, reports.classic()) == (0, {})


@pytest.mark.parametrize("factor", [0.4, 1.05, None])
def test_success_by_modality_recombines_to_the_whole(factor):
  infos = _infos(capacity_factor=factor, multiple_of=1)
  found = jax.jit(reports.routing_metrics)(infos, MODALITY, mask=MASK)
  both = found["success_image"].merge(found["success_text"])
  assert float(both.value()) == pytest.approx(float(found["success"].value()))
  assert float(both.weight) == 2 * 3 * 14
  if factor is None:
    assert float(found["success"].value()) == 1
  kept = np.mean([np.asarray(i.kept)[:, :14].mean() for i in infos])
  assert float(found["success"].value()) == pytest.approx(kept, rel=1e-6)
  drop = 1 - float(found["no_expert"].value())
  assert drop == pytest.approx(float(found["success"].value()), rel=1e-6)


def test_tables_count_tokens():
  info = _infos(capacity_factor=0.4, multiple_of=1)[0]
  table = reports.expert_table(info, MODALITY, mask=MASK)
  expert, kept = np.asarray(info.expert)[:, :14], np.asarray(info.kept)[:, :14]
  for m, part in enumerate((slice(0, 12), slice(12, 14))):
    own = expert[:, part].ravel()
    np.testing.assert_array_equal(
      table["demand"][m], np.bincount(own, minlength=4)
    )
    np.testing.assert_array_equal(
      table["kept"][m],
      np.bincount(own[kept[:, part].ravel()], minlength=4),
    )


def test_bad_weights_are_named():
  with pytest.raises(ValueError, match="importance=-1"):
    reports.LimoeAux(importance=-1)
  with pytest.raises(ValueError, match="audio"):
    reports.LimoeAux(local={"audio": 1.0})
  with pytest.raises(ValueError, match="num_experts=2"):
    reports.limoe_aux(2, {"image": 4, "text": 4})
