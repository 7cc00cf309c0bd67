"""LIMoE's experiment: pairs, a tiny run, resume, meshes, questions."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import linear_model

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tiny_runs

from experiments.common import pictures
from experiments.limoe import bench, experiment, pairs, questions, report
from experiments.limoe.configs import pairs as configs
from locojax.core import trees
from locojax.data import scenes
from locojax.methods import limoe
from locojax.report import results
from locojax.train import check, sharding

_config = functools.partial(tiny_runs.config, configs.get_config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("limoe")
  config = _config(
    conditions=("limoe", "dense_one_tower"), results=str(folder / "result.json")
  )
  return config, folder / "run", experiment.run(config, str(folder / "run"))


def test_the_run_ends_in_a_table_and_figures(finished):
  config, _, out = finished
  assert [r["condition"] for r in out["rows"]] == list(config.conditions)
  sparse, dense = out["rows"]
  assert 0 < sparse["success_text"][0] <= 100
  assert dense["success_text"] is None
  assert 0 <= dense["unseen_combinations_zero_shot"][0] <= 100
  assert results.load(config.results)["rows"] == out["rows"]
  experts = results.load(config.results.replace("result", "result_experts"))
  assert len(experts["rows"]) == config.experts.num_experts
  # 144 pairs: each patch and each piece is at one expert.
  assert sum(r["image_tokens"] for r in experts["rows"]) == 144 * 16
  for name in ("figure", "experts"):
    with open(out[name], "rb") as f:
      assert f.read(4) == b"\x89PNG"


def test_a_finished_folder_of_another_config_is_refused(finished):
  config, folder, _ = finished
  other = _config(learning_rate=1.0)
  with pytest.raises(ValueError, match="learning_rate"):
    experiment.fit(other, report.folder(folder, "limoe", 0))
  del config


_SMALL = {"model__num_layers": 1, "model__moe_layers": (0,)}
_fit = functools.partial(tiny_runs.fit, experiment)


def _equal(a, b) -> bool:
  a, b = (trees.flatten(x) for x in (a, b))
  return all(np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A config, and the end of its run on one device."""
  config = _config(**_SMALL, num_steps=4)
  return config, _fit(config, tmp_path_factory.mktemp("whole"), data=1)


def test_an_interrupted_run_ends_in_the_same_bits(whole, tmp_path):
  config, whole = whole
  with pytest.raises(tiny_runs.Stop):
    _fit(config, tmp_path / "cut", until=2, data=1)
  resumed = _fit(config, tmp_path / "cut", data=1)
  assert _equal(whole.params, resumed.params)
  assert _equal(whole.opt_state, resumed.opt_state)


def test_experts_are_restored_on_another_mesh(whole, tmp_path):
  config, whole = whole
  with pytest.raises(tiny_runs.Stop):
    _fit(config, tmp_path / "cut", until=2, data=2, expert=4)
  resumed = _fit(config, tmp_path / "cut", data=4)
  for path, x in trees.flatten(whole.params).items():
    np.testing.assert_allclose(
      np.asarray(trees.flatten(resumed.params)[path]),
      np.asarray(x),
      atol=5e-4,
      err_msg=path,
    )


def test_experts_lie_along_their_axis():
  config = _config(needs_data=False, mesh__data=2, mesh__expert=4)
  made = experiment.build(config)
  text = check.run(made, axes=dict(config.mesh), num_devices=8).text
  rows = [r for r in text.splitlines() if "experts/up_kernel" in r]
  assert rows and all("P(expert)" in r for r in rows)


@pytest.mark.parametrize("scan", [False, True])
def test_factored_moments_of_experts_lie_with_them(scan):
  """Of H's kind: a unit of a dense layer and one with 32 experts, 3 times."""
  config = _config(
    needs_data=False,
    model__width=40,
    model__hidden_size=48,
    model__num_layers=6,
    model__moe_layers=(1, 3, 5),
    model__scan=scan,
    experts__num_experts=32,
    optimizer={"name": "adafactor", "momentum": 0.9},
  )
  made = experiment.build(config)
  state = jax.eval_shape(made.init, jax.random.key(0))
  mesh = sharding.abstract_mesh({"data": 2, "expert": 4})
  specs = trees.flatten(sharding.state_shardings(state, mesh, made.rules))
  shapes = trees.flatten(state)
  lead = (None,) if scan else ()
  block = "units_0/block_1" if scan else "block_1"
  place = f"tower/{block}/moe/experts/"
  of = lambda head, name: [
    (shapes[path].shape[len(lead) :], specs[path].spec)
    for path in shapes
    if path.startswith(head) and path.endswith(place + name)
  ]
  cut, whole = jax.P(*lead, "expert"), jax.P()
  assert of("params", "up_kernel") == [((32, 40, 48), cut)]
  assert of("params", "up_bias") == [((32, 48), cut)]
  moments = of("opt_state", "up_kernel")
  assert sorted(moments, key=str) == sorted(
    [((32, 40), cut), ((32, 48), cut), ((1,), whole), ((32, 40, 48), cut)],
    key=str,
  )
  # The mean over experts has no axis of them.
  assert ((48,), whole) in of("opt_state", "up_bias")
  assert ((32,), cut) in of("opt_state", "up_bias")
  others = [s.spec for p, s in specs.items() if "experts/" not in p]
  assert set(others) == {whole}


@pytest.mark.slow
def test_a_scanned_run_trains_on_a_mesh(tmp_path):
  config = _config(
    num_steps=2,
    model__moe_layers=(0, 1),
    model__scan=True,
    optimizer={"name": "adafactor"},
  )
  one = _fit(config, tmp_path / "one", data=1)
  many = _fit(config, tmp_path / "many", data=2, expert=4)
  for path, x in trees.flatten(one.params).items():
    if path.endswith("key/bias"):
      continue  # its gradient is zero but for rounding, which Adafactor scales
    np.testing.assert_allclose(
      np.asarray(trees.flatten(many.params)[path]),
      np.asarray(x),
      atol=5e-4,
      err_msg=path,
    )


@pytest.mark.slow
@pytest.mark.tpu_check
def test_a_scanned_step_on_a_slice_moves_tokens_and_no_weights():
  paper = configs.get_config("paper_s32")
  config = _config(
    needs_data=False,
    model__moe_layers=(0, 1),
    model__scan=True,
    model__remat=True,
    model__dtype="bfloat16",
    batch_size=64,
  )
  run = functools.partial(
    check.run,
    experiment.build(config),
    axes={"data": 2, "expert": 4},
    topology="v5e:2x4",
  )
  allowed = paper.check.allowed_collectives
  found = run(allowed_collectives=allowed).compiled.collectives
  tokens = [c for c in found if c.kind == "all-to-all"]
  assert tokens and all(c.in_loop and c.trips == 2 for c in tokens)
  with pytest.raises(ValueError, match="all-to-all over expert"):
    run(allowed_collectives=allowed[1:])


@pytest.mark.parametrize("name", ["paper", "paper_s32"])
def test_sizes_of_the_paper_have_the_shapes_of_a_step(name):
  config = configs.get_config(name)
  made = experiment.build(config)
  state = jax.eval_shape(made.init, jax.random.key(0))
  total = sum(x.size for x in jax.tree.leaves(state.params))
  assert total > 1e8
  assert made.batch_shapes["image"].shape == (16384, 224, 224, 3)


@pytest.mark.parametrize("condition", list(experiment.CONDITIONS))
def test_every_condition_builds(condition):
  config = _config(condition=condition, needs_data=False)
  made = experiment.build(config)
  state = jax.eval_shape(made.init, jax.random.key(0))
  after, found = jax.eval_shape(made.step, state, made.batch_shapes)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert ("success_text" in found) == (not condition.startswith("dense"))


def test_no_test_scene_is_in_training():
  data = _config().data.to_dict()
  found = pairs.load(data)
  test = found.tests["unseen_combinations"]
  seen, held = scenes.held_out(data["held_out_share"], seed=data["seed"])
  assert not set(seen) & set(held)
  known = {
    scenes.caption(scenes.COMBINATIONS[c], w) for c in seen for w in (0,)
  }
  assert not known & set(test.names)
  assert len(found.image) == data["num_train"]


def test_batches_are_the_same_from_any_start():
  config = _config()
  one = list(itertools.islice(experiment.batches(config, 1), 1))[0]
  two = list(itertools.islice(experiment.batches(config, 0), 2))[1]
  for name, x in one.items():
    np.testing.assert_array_equal(x, two[name])


def _folder(root):
  rows = []
  for i in range(12):
    Image.new("RGB", (20, 14), (20 * i, 0, 255 - 20 * i)).save(
      root / f"{i}.png"
    )
    rows.append({"file": f"{i}.png", "caption": [f"shade {i}", f"tone {i}"]})
  (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return root


def test_an_own_folder_is_a_training_set(tmp_path):
  config = _config(
    "folder",
    data__path=str(_folder(tmp_path)),
    data__vocab_size=40,
    batch_size=4,
  )
  found = pairs.load(config.data.to_dict())
  assert len(found.image) == 10 and len(found.tests["folder"].image) == 2
  assert {len(c) for c in found.captions} == {2}
  batch = next(experiment.batches(config, 0))
  assert batch["image"].shape == (4, 48, 48, 3)
  assert batch["text"].shape == (4, 16)
  # Each of the two captions of an image, at random.
  seen = {}
  for batch in itertools.islice(experiment.batches(config, 0), 20):
    for image, text in zip(batch["image"], batch["text"]):
      seen.setdefault(image.tobytes(), set()).add(text.tobytes())
  assert [len(texts) for texts in seen.values()] == [2] * 10
  with pytest.raises(ValueError, match="data.path=''"):
    pairs.load(_config("folder").data.to_dict())
  with pytest.raises(ValueError, match="data.names"):
    pairs.load(_config(data__names=("scene",)).data.to_dict())


def test_held_out_classes_are_not_in_training():
  data = _config(
    data__names=("digits",), data__held_out_classes=("three", "seven")
  ).data.to_dict()
  found = pairs.load(data)
  assert not any(
    "three" in t or "seven" in t for c in found.captions for t in c
  )
  test = found.tests["digits_unseen_classes"]
  assert test.names == ("three", "seven") and set(test.label) == {0, 1}
  assert set(found.tests) == {"digits", "digits_unseen_classes"}


@pytest.mark.real_data
def test_no_emoji_of_the_tests_is_in_training(data_dir):
  data = _config("emoji").data.to_dict()
  data["data_dir"] = str(data_dir / "tfds")
  found = pairs.load(data)
  names = {c[0] for c in found.captions}
  assert not names & set(found.tests["unseen_emoji"].names)
  vendor = found.tests["unseen_vendor"]
  assert len(names & set(vendor.names)) > 1000
  assert found.image.shape[1:] == (48, 48, 3)
  assert len(found.image) + len(vendor.image) == 6399


def test_a_ridge_probe_is_that_of_scikit_learn():
  rng = np.random.default_rng(0)
  label = np.arange(60) % 3
  z = np.eye(3)[label] + 0.05 * rng.normal(size=(60, 3))
  split = (z[:30], label[:30]), (z[30:], label[30:])
  assert questions.ridge_probe(*split, num_classes=3) == 1.0
  shuffled = split[0], (z[30:], (label[30:] + 1) % 3)
  assert questions.ridge_probe(*shuffled, num_classes=3) == 0.0
  # And where classes overlap, with the intercept penalised too.
  z = np.eye(3)[label] + 0.8 * rng.normal(size=(60, 3))
  full = np.concatenate([z, np.ones((60, 1))], axis=1)
  peer = linear_model.Ridge(alpha=3.0, fit_intercept=False)
  peer.fit(full[:30], np.eye(3)[label[:30]])
  right = peer.predict(full[30:]).argmax(axis=1) == label[30:]
  split = (z[:30], label[:30]), (z[30:], label[30:])
  found = questions.ridge_probe(*split, num_classes=3, l2=3.0)
  assert found == right.mean() and 0.4 < found < 0.95


def test_resizing_puts_transparent_images_on_white():
  image = np.zeros((1, 4, 4, 4), np.uint8)
  image[0, :2, :, 3] = 255
  found = pictures.resized(image, 2)
  np.testing.assert_array_equal(found[0, 0], np.zeros((2, 3)))
  np.testing.assert_array_equal(found[0, 1], np.full((2, 3), 255))
  assert pictures.resized(np.zeros((1, 4, 4, 1), np.uint8), 4).shape[-1] == 3


def test_the_peer_of_the_benchmark_is_the_layer():
  """Written out with masks it gives what the dispatchers give."""
  x = jax.random.normal(jax.random.key(0), (2, 32, 16))
  ours = limoe.MoeMlp(4, 24, capacity_factor=bench.FACTOR, noise_std=0.0)
  peer = bench.EinsumPeer(4, 24)
  params = ours.init(jax.random.key(1), x, train=False)
  y, _ = ours.apply(params, x, train=True)
  np.testing.assert_allclose(peer.apply(params, x), y, atol=1e-5)


@pytest.mark.slow
def test_the_benchmark_has_a_row_for_each_layer_and_step(tmp_path):
  path = str(tmp_path / "bench.json")
  argv = "--width 16 --hidden 32 --experts 4 --tokens 64 --groups 32 "
  argv += "--blocks 2 --batch 4 --rounds 1 --results"
  bench.main([*argv.split(), path])
  rows = results.load(path)["rows"]
  assert len(rows) == 5 + 2
  assert all(r["ms"] > 0 for r in rows)
  assert [r["ratio"] for r in rows if r["name"] == "dense"] == [1.0]


def _listed_conditions() -> list[str]:
  """All that the variants of the config list."""
  found = [
    n for v in configs.VARIANTS for n in configs.get_config(v).conditions
  ]
  return list(dict.fromkeys(found))


_QUICK = ("soft",)


@pytest.mark.parametrize(
  "name",
  [
    n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow)
    for n in _listed_conditions()
  ],
)
def test_every_listed_condition_runs_end_to_end(name, tmp_path):
  config = _config(conditions=(name,), num_steps=2, num_evals=1)
  (row,) = experiment.run(config, str(tmp_path))["rows"]
  assert row["condition"] == name
  assert 0 <= row["unseen_combinations_zero_shot"][0] <= 100
  dense = name.startswith("dense")
  for key in ("success_image", "success_text"):
    # Without experts there is no such column.
    assert key not in row if dense else 0 <= row[key][0] <= 100, key
