"""Configs with changes, and runs that end in the middle, for tests."""

from __future__ import annotations

import dataclasses
import math

import jax

from locojax.train import loop, sharding


def config(get_config, variant="tiny", **changes):
  """A config of `get_config`; `part__key` is the key of a part."""
  made = get_config(variant).copy_and_resolve_references()
  with made.unlocked():
    for name, value in changes.items():
      part, _, key = name.partition("__")
      if key:
        made[part][key] = value
      else:
        made[part] = value
  return made


class Stop(Exception):
  """Ends a run in the middle."""


def fit(experiment, config, folder, *, until=None, **axes):
  """A run of `experiment.build(config)` over a mesh of `axes`.

  Without evaluations, which would be most of what is compiled.

  Raises:
    Stop: the batch `until` is asked for.
  """
  made = dataclasses.replace(experiment.build(config), evals={})
  if until is not None:
    whole = made.batches

    def cut(start):
      for k, batch in enumerate(whole(start), start):
        if k == until:
          raise Stop
        yield batch

    made = dataclasses.replace(made, batches=cut)
  num = math.prod(axes.values())
  return loop.fit(
    made,
    folder,
    key=jax.random.key(config.seed),
    mesh=sharding.make_mesh(axes, jax.devices()[:num]),
    config=config.to_dict(),
    log_every=1,
    save_every=2,
    keep=1,
  )
