"""Everything that a shipped config lists runs end to end, at the least size.

The lists are read from configs and code, so that a new entry is tried without a
line here. A few of each kind are in the default suite, the rest is slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from experiments.ciw import experiment as noise_study
from experiments.ciw import methods as ciw_methods
from experiments.ciw import search, two_moons
from experiments.ciw.configs import noise as noise_configs
from experiments.ciw.configs import two_moons as moons_configs
from experiments.common import stages
from experiments.dp_ftrl import experiment as dp_study
from experiments.dp_ftrl import mechanisms, tasks
from experiments.dp_ftrl.configs import classification, next_word
from experiments.locoprop import experiment as benchmark
from experiments.locoprop import language_model, language_model_settings
from experiments.locoprop import optimizers as kinds
from experiments.locoprop.configs import autoencoder, transformer
from experiments.smelu import experiment as plane_study
from experiments.smelu import tasks as plane_tasks
from experiments.smelu.configs import plane
from locojax.methods import dp_ftrl, locoprop


@pytest.fixture(scope="module", autouse=True)
def _one_device():
  # The mesh of a tiny run is one device of the eight virtual ones.
  make = stages.sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    one = lambda axes: make(axes, jax.devices()[:1])
    patch.setattr(stages.sharding, "make_mesh", one)
    yield


def _config(module, **changes):
  config = module.get_config("tiny").copy_and_resolve_references()
  with config.unlocked():
    config.mesh = {"data": 1}
    for key, value in changes.items():
      *parents, last = key.split("__")
      node = config
      for parent in parents:
        node = node[parent]
      node[last] = value
  return config


def _marked(names: Iterable[Any], quick: Iterable[Any] = ()):
  """Test cases, of which only `quick` are in the default suite."""
  names, quick = list(dict.fromkeys(names)), set(quick)
  assert quick <= set(names)
  return [
    pytest.param(n, marks=() if n in quick else pytest.mark.slow) for n in names
  ]


def _listed(module, key: str) -> list[str]:
  """What all variants of a config list under `key`, each once."""
  several = [module.get_config(v)[key] for v in module.VARIANTS]
  return list(dict.fromkeys(name for names in several for name in names))


def _check(result: Mapping[str, Any]) -> None:
  assert "diverged" not in result, result
  values = result["values"]
  assert values and all(np.isfinite(v) for v in values.values()), values


_DP = {"classification": classification, "next_word": next_word}


def _dp_cells():
  """`task/mechanism/sampler`."""
  names = list(mechanisms.METHODS)
  for module in _DP.values():
    assert set(_listed(module, "methods")) <= set(names)
  return [
    f"{task}/{name}/{sampler}"
    for task in tasks.KINDS
    for name in names
    for sampler in dp_study.SAMPLERS
  ]


@pytest.mark.parametrize(
  "cell",
  _marked(
    _dp_cells(),
    (
      "classification/tree_honaker_restart/epochs",
      "classification/blt/min_sep",
    ),
  ),
)
def test_mechanisms_samplers_and_tasks_run(cell, tmp_path):
  task, name, sampler = cell.split("/")
  config = _config(
    _DP[task],
    method=name,
    methods=(name,),
    sampler__name=sampler,
    num_rounds=3,
    rho=50.0,  # leaves noise to the count of adaptive clipping
    rhos=(50.0,),
    server_rate=0.1,
  )
  found = dp_study.fit(config, tmp_path)
  _check(found)
  rows = dp_ftrl.PrivacyLedger(tmp_path / dp_study.LEDGER).records
  assert sum(r["kind"] == "release" for r in rows) == 3


def test_a_large_share_of_few_clients_trains(monkeypatch):
  """64 clients in Poisson cohorts of 24, whose room was once 66 places."""
  fixed = lambda *args: 2.0  # the search for it is tested elsewhere
  monkeypatch.setattr(dp_ftrl, "poisson_noise_multiplier", fixed)
  config = _config(classification, method="amplified", methods=("amplified",))
  with config.unlocked():
    config.cohort_size, config.num_rounds, config.mesh.data = 24, 2, -1
  made = dp_study.build(config)
  state, batch = made.init(jax.random.key(0)), next(made.batches(0))
  assert batch["client_mask"].shape == (64,)
  state, found = jax.jit(made.step)(state, batch)
  assert np.isfinite(found["loss"].value()) and state.step == 1


@pytest.mark.parametrize("sampler", dp_study.SAMPLERS)
@pytest.mark.parametrize("method", ["tree_honaker", "amplified"])
def test_a_cohort_larger_than_the_clients_is_named(method, sampler):
  config = _config(
    classification, method=method, methods=(method,), sampler__name=sampler
  )
  with config.unlocked():
    config.cohort_size, config.data.num_clients = 65, 64
  with pytest.raises(ValueError, match="cohort_size=65 .* 64.*clients"):
    dp_study.build(config)
  for make in (
    lambda: dp_ftrl.ShuffledEpochs(64, 65, seed=0),
    lambda: dp_ftrl.FixedOrder(64, 65),
    lambda: dp_ftrl.MinSepSampler(64, 65, min_sep=1, seed=0),
  ):
    with pytest.raises(ValueError, match="cohort_size=65 .* 64 clients"):
      make()


def _optimizers() -> dict[str, Mapping[str, Any]]:
  """Settings by name, of all variants; the same settings once."""
  found: dict[str, Mapping[str, Any]] = {}
  seen = set()
  for variant in autoencoder.VARIANTS:
    config = autoencoder.get_config(variant)
    table = config.optimizers.to_dict()
    changed = config.tuned_for_seconds.to_dict()
    fast = {f"{n} by seconds": {**table[n], **c} for n, c in changed.items()}
    for name, options in {**table, **fast}.items():
      text = json.dumps(options, sort_keys=True)
      if text not in seen:
        seen.add(text)
        name = f"{variant}: {name}" if name in found else name
        found[name] = options
  return found


OPTIMIZERS = _optimizers()


def test_every_kind_of_optimizer_is_listed():
  assert {o["kind"] for o in OPTIMIZERS.values()} == set(kinds.KINDS)


@pytest.mark.parametrize(
  "name", _marked(OPTIMIZERS, ("shampoo", "locoprop_m_fast"))
)
def test_optimizers_of_the_benchmark_run(name, tmp_path):
  config = _config(
    autoencoder,
    methods=(),
    optimizers={"this": OPTIMIZERS[name]},
    tuned_for_seconds={},
    method="this",
    num_epochs=1,
    num_evals=1,
  )
  _check(benchmark.fit(config, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("variant", autoencoder.VARIANTS)
def test_schedules_of_the_benchmark_run(variant, tmp_path):
  given = autoencoder.get_config(variant)
  config = _config(
    autoencoder,
    methods=(),
    method="adam",
    num_epochs=2,
    **{k: given[k] for k in ("schedule", "schedule_epochs", "warmup", "axis")},
  )
  _check(benchmark.fit(config, tmp_path))


_TRANSFORMER = {
  "method": language_model.METHODS,
  "locoprop__inner": tuple(locoprop.INNER),
  "locoprop__output": language_model_settings.OUTPUTS,
  "locoprop__comm": ("all_reduce", "gather"),
  "model__activation": language_model_settings.ACTIVATIONS,
  "model__dtype": language_model_settings.DTYPES,
  "model__remat": ("none", "attention"),
  "layout": language_model_settings.LAYOUTS,
}


@pytest.mark.parametrize(
  "change",
  _marked([f"{k}={v}" for k, values in _TRANSFORMER.items() for v in values]),
)
def test_settings_of_the_transformer_run(change, tmp_path):
  key, value = change.split("=")
  config = _config(
    transformer,
    num_steps=2,
    warmup_steps=1,
    batch_size=8,
    eval_every=2,
    eval_batches=1,
    methods=("locoprop",),
    **{key: value},
  )
  if key == "method":
    with config.unlocked():
      config.methods = (value,)
  out = language_model.run(config, str(tmp_path))
  assert np.isfinite(out["rows"][0]["test_loss"]).all()


_NOISES = [
  n for n in _listed(noise_configs, "noises") if not n.startswith("human")
]


@pytest.mark.parametrize(
  "cell",
  _marked(
    [
      *(f"{m}/symmetric:0.4" for m in ciw_methods.METHODS),
      *(f"cicw/{n}" for n in _NOISES if n != "cifar100:0.4"),
    ],
    ("dynamic_mixup/symmetric:0.4",),
  ),
)
def test_methods_against_noisy_labels_run(cell, tmp_path):
  name, noise = cell.split("/")
  assert set(_listed(noise_configs, "methods")) <= set(ciw_methods.METHODS)
  config = _config(
    noise_configs,
    data__num_train=200,
    data__num_test=50,
    model__hidden=(16,),
    num_epochs=3,
    batch_size=30,
    detect_epochs=1,
    noise=(noise,),
    noises=(noise,),
    method=name,
    options=search.trials(name, 1)[0],
  )
  _check(noise_study.fit(config, tmp_path))


_MOONS = moons_configs.get_config("paper").table.to_dict()


@pytest.mark.parametrize("name", _marked(_MOONS, ("cicw_kl_tv", "nce_rce")))
def test_methods_on_two_moons_run(name, tmp_path):
  config = _config(
    moons_configs,
    data__num_train=100,
    data__num_test=50,
    hidden=(8,),
    num_epochs=6,
    burnin_epochs=2,
    anneal_epochs=2,
    num_frames=0,
    burnin_sweep=(),
    method=name,
    methods=(name,),
    pictured=(),
  )
  two_moons.fit(config, tmp_path)
  _check(json.loads((tmp_path / "result.json").read_text()))


def _plane_cells() -> list[str]:
  """`condition/setting`: all settings in one condition, all conditions."""
  grids = [plane.get_config(v).grid.to_dict() for v in plane.VARIANTS]
  several = {s for grid in grids for names in grid.values() for s in names}
  conditions = plane.get_config().conditions.to_dict()
  assert {name for grid in grids for name in grid} <= set(conditions)
  return [
    *(f"window_1000/{s}" for s in sorted(several)),
    *(f"{c}/relu" for c in conditions),
  ]


@pytest.mark.parametrize(
  "cell", _marked(_plane_cells(), ("dropout_only/relu", "window_1000/gsmelu:1"))
)
def test_activations_and_conditions_of_the_plane_run(cell, tmp_path):
  condition, setting = cell.split("/")
  changes = {"data__num_train": 200, "data__num_test": 50}
  if "labels" in plane.get_config().conditions[condition].vary:
    changes["data__name"] = plane_tasks.IMAGES[0]
  if condition == "dropout_only":
    changes["model__dropout_rate"] = 0.1
  config = _config(
    plane,
    batch_size=50,
    num_replicas=2,
    learning_rate=0.05,
    grid={condition: (setting,)},
    condition=condition,
    setting=setting,
    **changes,
  )
  plane_study._point(config, tmp_path)
  (row,) = plane_study.evaluate(config, str(tmp_path))["rows"]
  assert (row["condition"], row["setting"]) == (condition, setting)
  assert np.isfinite([row["log_loss"], row["pd_percent"]]).all()
