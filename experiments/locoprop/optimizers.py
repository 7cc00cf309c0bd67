"""The optimisers of the benchmark, by kind, as steps over one loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

from experiments.locoprop.baselines import kfac, shampoo, soap
from locojax.core import checks, types
from locojax.methods import locoprop
from locojax.train import optimizers, steps

FIRST_ORDER = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")


def _locoprop(schedule, losses, transfers, *, inner_options=None, **options):
  inner = options.pop("inner", "rmsprop")
  inner = checks.lookup("inner", inner, locoprop.INNER)
  if inner_options:
    inner = functools.partial(inner, **inner_options)
  tx = locoprop.locoprop(schedule, inner, transfers=transfers, **options)
  return tx, locoprop.make_step(losses[0], tx)


def _kfac(schedule, losses, transfers, *, stats_every=1, **options):
  tx = kfac.kfac(schedule, **options)
  return tx, kfac.make_step(*losses, tx, stats_every=stats_every)


def _plain(make: Callable[..., optax.GradientTransformation]):
  def build(schedule, losses, transfers, **options):
    tx = make(schedule, **options)
    return tx, steps.from_loss(losses[0], tx)

  return build


def _named(name: str):
  def make(schedule, **options):
    return optimizers.make(name, learning_rate=schedule, **options)

  return _plain(make)


KINDS: dict[str, Callable[..., Any]] = {
  **{name: _named(name) for name in (*FIRST_ORDER, "muon")},
  "shampoo": _plain(shampoo.shampoo),
  "soap": _plain(soap.soap),
  "kfac": _kfac,
  "locoprop": _locoprop,
}


def make(
  kind: str,
  *,
  schedule: optax.Schedule,
  loss_fn: types.LossFn,
  sampled_loss_fn: types.LossFn,
  transfers: Mapping[str, str],
  options: Mapping[str, Any],
) -> tuple[optax.GradientTransformation, types.StepFn]:
  """A transformation and the step that feeds it.

  Args:
    kind: a key of `KINDS`.
    schedule: learning rate by update.
    loss_fn: the loss.
    sampled_loss_fn: the loss with targets drawn from the model, for K-FAC.
    transfers: transfer functions by regex of the layer path, for LocoProp.
    options: of the kind.

  Raises:
    ValueError: an unknown kind; the known ones are listed.
  """
  build = checks.lookup("kind", kind, KINDS)
  return build(schedule, (loss_fn, sampled_loss_fn), transfers, **options)
