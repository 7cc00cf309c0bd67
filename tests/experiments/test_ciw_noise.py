"""The study of noisy labels on images: methods, data, choice, its tiny run."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments.ciw import (
  bench_overhead,
  experiment,
  methods,
  noise_report,
  noisy_images,
  search,
  suspects,
)
from experiments.ciw.configs import noise as configs
from experiments.common import stages
from locojax.core import trees
from locojax.report import results, runs
from locojax.train import check, sharding, steps


def _config(variant="tiny", **changes):
  config = configs.get_config(variant).copy_and_resolve_references()
  with config.unlocked():
    config.mesh = {"data": 1}
    for name, value in changes.items():
      target = config[name] if isinstance(value, dict) else None
      if target is not None and name != "options":
        target.update(value)
      else:
        config[name] = value
  return config


def _short(**changes):
  """`tiny` with two methods, fewer examples and epochs."""
  settings = dict(
    data={"num_train": 400, "num_test": 100},
    model={"hidden": (32,)},
    methods=("cross_entropy", "cicw"),
    num_epochs=6,
    batch_size=30,
    detect_epochs=2,
  )
  return _config(**{**settings, **changes})


@pytest.fixture(scope="module", autouse=True)
def _one_device():
  # The mesh of a tiny run is one device of the eight virtual ones.
  make = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    one = lambda axes: make(axes, jax.devices()[:1])
    patch.setattr(stages.sharding, "make_mesh", one)
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("noise")
  config = _short(results=str(folder / "results.json"))
  return config, folder, experiment.run(config, str(folder))


def test_the_run_ends_in_a_table_and_a_figure(finished):
  config, folder, out = finished
  pairs = [(row["noise"], row["method"]) for row in out["rows"]]
  assert pairs == [(n, m) for n in config.noises for m in config.methods]
  for row in out["rows"]:
    assert len(row["accuracy_last"]) == len(row["accuracy_best"]) == 2
    assert np.mean(row["accuracy_best"]) > 30  # chance is 10
    level = 100 * noisy_images.parse_noise(row["noise"])[1]
    np.testing.assert_allclose(row["realised_percent"], level, atol=8)
    assert ("detection_auc" in row) == (row["method"] == "cicw")
  assert min(out["rows"][1]["detection_auc"]) > 0.6
  assert pathlib.Path(out["figure"]).read_bytes()[:4] == b"\x89PNG"
  assert "cicw" in pathlib.Path(out["table"]).read_text()
  assert results.load(config.results)["rows"] == out["rows"]


def test_all_trials_and_the_figure_come_with_the_results(finished):
  config, folder, out = finished
  path = pathlib.Path(config.results)
  rows = results.load(path.with_name("results_trials.json"))["rows"]
  of = lambda row: (row["noise"], row["method"])
  assert len(rows) == config.num_trials * len(out["rows"])
  chosen = {of(row): row for row in rows if row["chosen"] == "yes"}
  for row in out["rows"]:
    own = chosen[of(row)]
    assert (own["trial"], own["setting"]) == (row["trial"], row["setting"])
    assert own["noisy_validation"] == row["noisy_validation"]
    several = [r["noisy_validation"] for r in rows if of(r) == of(row)]
    assert np.mean(own["noisy_validation"]) == np.max(np.mean(several, axis=1))
  assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_several_kinds_of_noise_have_panels_of_their_own(finished, tmp_path):
  config, folder, out = finished
  drawn = []
  axes = noise_report.figures.axes

  def recorded(*args, **options):
    figure, grid = axes(*args, **options)
    drawn.append(grid)
    return figure, grid

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(noise_report.figures, "axes", recorded)
    config = _config(noises=("symmetric:0.4", "next:0.4"))
    made = [
      {**row, "noise": noise}
      for row, noise in zip(out["rows"], np.repeat(config.noises, 2))
    ]
    noise_report._draw(config, made, tmp_path / "figure.png")
  titles = [ax.get_title() for ax in drawn[0][0]]
  assert titles == ["digits, symmetric:0.4", "digits, next:0.4"]


def _own_folder(root):
  """Images of two sizes: 12 dark and 13 bright ones."""
  rng = np.random.default_rng(0)
  for name, level, num in (("dark", 40, 12), ("light", 200, 13)):
    (root / name).mkdir(parents=True)
    for i in range(num):
      side = 6 + 4 * (i % 2)
      noise = rng.normal(0, 12, (side, side, 3))
      pixels = np.clip(level + noise, 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
  return root


def test_the_study_takes_a_folder_of_images(tmp_path):
  path = str(_own_folder(tmp_path / "images"))
  changes = dict(
    data={"path": path, "side": 6},
    model={"hidden": (8,)},
    methods=("cross_entropy",),
    num_epochs=4,
    batch_size=6,
    num_seeds=1,
    num_trials=1,
    noises=("symmetric:0.2",),
    noise=("symmetric:0.2",),
  )
  config = _config("folder", **changes)
  found = noisy_images.resolved(config).data
  assert (found.num_classes, found.num_train, found.num_test) == (2, 21, 4)
  assert noisy_images.image_shape(found) == (6, 6, 3)
  parts = noisy_images.make(found.to_dict(), "symmetric:0.2", 0)
  assert [len(p.label) for p in parts.values()] == [19, 2, 4]
  assert sorted(parts["test"].label.tolist()) == [0, 0, 1, 1]
  bright = parts["train"].image.mean(axis=(1, 2, 3)) > 120
  np.testing.assert_array_equal(bright, parts["train"].true == 1)
  assert len(np.unique(parts["valid"].true)) == 2  # classes are mixed
  out = experiment.run(config, str(tmp_path / "run"))
  [row] = out["rows"]
  assert row["accuracy_last"][0] >= 50
  again = experiment.run(config, str(tmp_path / "run"))
  assert again["rows"] == out["rows"]
  (tmp_path / "images" / "dark" / "99.png").write_bytes(
    (tmp_path / "images" / "dark" / "00.png").read_bytes()
  )
  with pytest.raises(ValueError, match=r"num_train|other data"):
    experiment.run(config, str(tmp_path / "run"))
  with pytest.raises(ValueError, match="data.num_classes=3"):
    wrong = {**found.to_dict(), "num_classes": 3}
    noisy_images.make(wrong, "symmetric:0.2", 0)


@pytest.mark.parametrize("replica", [0, 3])
def test_suspects_of_a_finished_trial(finished, tmp_path, replica):
  config, folder, _ = finished
  trial, one = list(experiment.trials(config).items())[-1]
  argv = [str(trial.folder(folder)), "--workdir", str(tmp_path)]
  suspects.main([*argv, "--replica", str(replica)])
  found = json.loads((tmp_path / "detection.json").read_text())
  cell = experiment.cells(one)[replica]
  wrong = experiment._parts(one, cell)["train"].wrong
  assert found["wrong_labels"] == wrong.mean()
  assert found["auc"] > 0.6
  rows = (tmp_path / "suspects.csv").read_text().splitlines()
  assert len(rows) == len(wrong) + 1
  for name in ("suspects.png", "weights.png"):
    assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_suspects_need_a_finished_trial_and_one_of_its_replicas(
  finished, tmp_path
):
  config, folder, _ = finished
  trial = list(experiment.trials(config))[-1]
  with pytest.raises(ValueError, match="replica=4"):
    experiment.training_set(trial.folder(folder), 4)
  with pytest.raises(ValueError, match="must be a finished trial"):
    experiment.training_set(tmp_path)


def test_run_again_trains_nothing(finished, monkeypatch):
  config, folder, out = finished
  monkeypatch.setattr(experiment, "build", None)  # to call it would fail
  again = experiment.run(config, str(folder))
  assert again["markdown"] == out["markdown"]
  assert experiment.evaluate(config, str(folder))["rows"] == out["rows"]


def test_an_interrupted_trial_ends_in_the_same_bits(finished, tmp_path):
  config, folder, _ = finished
  (trial, one), *_ = experiment.trials(config).items()
  settings = dict(log_every=3, save_every=3, keep=1)
  half = experiment.dataclasses.replace(experiment.build(one), num_steps=3)
  stages.fit(half, one, tmp_path, **settings)
  state = stages.fit(experiment.build(one), one, tmp_path, **settings)
  whole = stages.fit(
    experiment.build(one), one, trial.folder(folder), **settings
  )
  jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


def _choices(config, folder):
  return {
    (n, m): noise_report.choose(config, folder, n, m).number
    for n in config.noises
    for m in config.methods
  }


def test_the_choice_never_sees_clean_labels_or_the_test_set(
  finished, tmp_path, monkeypatch
):
  config, folder, _ = finished
  make = noisy_images.make

  def spoilt(*args):
    """The same given labels; true ones and the whole test set are wrong."""
    parts, rng = make(*args), np.random.default_rng(0)
    out = {}
    for name, part in parts.items():
      true = rng.permutation(part.true)
      given = true if name == "test" else part.label
      image = part.image[::-1] if name == "test" else part.image
      out[name] = noisy_images.Part(image, given, true)
    return out

  monkeypatch.setattr(noisy_images, "make", spoilt)
  again = experiment.run(config, str(tmp_path))
  assert _choices(config, tmp_path) == _choices(config, folder)
  for trial in experiment.trials(config):
    for cell in config.noises:
      a, b = (
        noise_report.validation(config, f, trial, cell)
        for f in (folder, tmp_path)
      )
      assert a == b
  assert all(np.mean(r["accuracy_best"]) < 30 for r in again["rows"])


def _write_trial(folder, valid, test):
  folder.mkdir(parents=True)
  lines = []
  for step in range(len(valid[0])):
    line = {"step": step, "seconds": 0.0}
    for r in range(2):
      line[f"valid/replica_{r}/accuracy"] = valid[r][step]
      line[f"test/replica_{r}/accuracy"] = test[r][step]
    lines.append(json.dumps(line))
  (folder / runs.METRICS).write_text("\n".join(lines) + "\n")


def test_rows_are_read_at_the_last_and_the_best_epoch(tmp_path):
  config = _config(
    methods=("mixup",), noises=("symmetric:0.4",), noise=("symmetric:0.4",)
  )
  folders = [t.folder(tmp_path) for t in experiment.trials(config)]
  # What was evaluated before training, at step 0, does not count.
  _write_trial(folders[0], [[0.9, 0.1, 0.2]] * 2, [[1.0, 1.0, 1.0]] * 2)
  _write_trial(
    folders[1],
    [[0.0, 0.3, 0.2], [0.0, 0.2, 0.4]],
    [[0.0, 0.5, 0.6], [0.0, 0.7, 0.8]],
  )
  (tmp_path / "noise.json").write_text(
    json.dumps({"symmetric:0.4": [{"rate": 0.25}, {"rate": 0.5}]})
  )
  (row,) = noise_report.rows(config, tmp_path)
  assert row["trial"] == 1 and row["setting"] == "mixup_alpha=0.2"
  assert row["accuracy_last"] == [60.0, 80.0]
  assert row["accuracy_best"] == [50.0, 80.0]
  assert row["realised_percent"] == [25.0, 50.0]
  (folders[1] / "diverged.json").write_text("{}")
  assert noise_report.rows(config, tmp_path)[0]["trial"] == 0


def test_noise_is_the_same_for_all_methods_of_a_seed():
  config = _short()
  parts = {}
  for method in config.methods:
    trials = [
      c for t, c in experiment.trials(config).items() if t.method == method
    ]
    made = experiment.plan(trials[0])
    parts[method] = [experiment._parts(trials[0], c) for c in made.cells]
  for a, b in zip(*parts.values(), strict=True):
    np.testing.assert_array_equal(a["train"].label, b["train"].label)
  labels = [p["train"].label for p in parts["cicw"]]
  assert not np.array_equal(labels[0], labels[1])  # another seed
  assert not np.array_equal(labels[0], labels[2])  # more noise
  for several in parts.values():
    for part in several:
      assert not part["test"].wrong.any()
      assert len(part["train"].label) == 360 and len(part["valid"].label) == 40
      assert part["valid"].wrong.any()


def test_batches_hold_the_labels_that_were_given():
  config = _short()
  made = experiment.plan(config)
  batch = next(experiment.build(config).batches(2))
  assert batch["image"].shape == (4, 12, 30, 8, 8, 1)
  for r, cell in enumerate(made.cells):
    part = experiment._parts(config, cell)["train"]
    index = batch["index"][r].ravel()
    np.testing.assert_array_equal(np.sort(index), np.arange(360))
    np.testing.assert_array_equal(part.label[index], batch["label"][r].ravel())
    np.testing.assert_array_equal(
      part.image[index], batch["image"][r].reshape(-1, 8, 8, 1)
    )


def test_pooled_images_are_means_of_squares():
  images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
  out = noisy_images._pooled(images, 2)
  np.testing.assert_array_equal(out[0, :, :, 0], [[2, 4], [10, 12]])
  data = {**_config().data.to_dict(), "pool": 3}
  with pytest.raises(ValueError, match="pool"):
    noisy_images.image_shape(data)


def test_every_method_has_as_many_trials():
  assert set(search.SPACES) == set(methods.METHODS) == set(configs.ALL)
  assert {len(search.trials(m, search.MOST)) for m in configs.ALL} == {
    search.MOST
  }
  with pytest.raises(ValueError, match="num_trials"):
    search.trials("ciw", search.MOST + 1)


# A linear model on separable points: two classes, some labels wrong.
_SIZE, _UPDATES = 64, 40


def _points():
  rng = np.random.default_rng(0)
  true = rng.integers(0, 2, _SIZE)
  x = rng.normal(size=(_SIZE, 2)) * 0.5 + 2 * (2 * true[:, None] - 1)
  label = np.where(rng.random(_SIZE) < 0.25, 1 - true, true)
  arrays = {"image": x.astype(np.float32), "label": label.astype(np.int32)}
  return {**arrays, "index": np.arange(_SIZE, dtype=np.int32)}, true


def _forward(params, state, images):
  return images @ params["w"] + params["b"], state


@pytest.mark.parametrize(
  "name, options",
  [
    pytest.param(
      name,
      {k: v for k, v in trial.items() if k != "rate"},
      marks=[pytest.mark.slow] if i else [],
      id=f"{name}-{i}",
    )
    for name, space in search.SPACES.items()
    for i, trial in enumerate(space[:3])
    if name != "cross_entropy" or i == 0
    # Half of the target from its own prediction, or more: no way back from the
    # start of this test, where all are wrong.
    if not (name == "bootstrap_hard" and trial["share"] >= 0.5)
  ],
)
def test_every_trial_learns_what_is_right(name, options):
  batch, true = _points()
  setup = methods.Setup(_forward, 2, _SIZE, _UPDATES)
  made = methods.make(name, setup, **options)
  tx = optax.sgd(0.1)
  params = {"w": jnp.array([[0.3, -0.3], [0.3, -0.3]]), "b": jnp.zeros(2)}
  state = steps.init_state(
    params,
    tx,
    key=jax.random.key(1),
    model_state=made.model_state({}, _SIZE),
  )
  step = steps.with_update(steps.from_loss(made.loss, tx))

  @jax.jit
  def train(state):
    def one(state, _):
      state, found = step(state, batch)
      if made.remembers:
        due = state.step % 4 == 0
        memory = methods.end_of_epoch(state.model_state, due)
        state = state.replace(model_state=memory)
      return state, found["accuracy"].value()

    return jax.lax.scan(one, state, None, length=_UPDATES)

  state, given = train(state)
  logits, _ = _forward(state.params, {}, batch["image"])
  assert np.mean(logits.argmax(-1) == true) == 1.0
  assert given[0] < 0.5 < given[-1]
  if made.weights is not None:
    w = made.weights(logits, batch["label"], state.step, state.model_state)
    wrong = batch["label"] != true
    assert np.mean(w[wrong]) < np.mean(w[~wrong])


def test_until_the_end_of_burn_in_cicw_is_cross_entropy():
  batch, _ = _points()
  setup = methods.Setup(_forward, 2, _SIZE, 100)
  options = search.SPACES["cicw"][0]
  plain = methods.make("cross_entropy", setup).loss
  cicw = methods.make("cicw", setup, **options).loss
  params = {"w": jnp.array([[0.3, -0.3], [0.3, -0.3]]), "b": jnp.zeros(2)}
  value = lambda f, update: f(
    params, {"net": {}}, {**batch, "update": update}, jax.random.key(0)
  )[0]
  np.testing.assert_allclose(value(cicw, 10), value(plain, 10), rtol=1e-6)
  assert value(cicw, 11) < value(plain, 11)


@pytest.mark.parametrize("name", ["cicw_mixup", "dynamic_mixup"])
def test_until_the_end_of_burn_in_mixup_is_plain(name):
  batch, _ = _points()
  setup = methods.Setup(_forward, 2, _SIZE, 100)
  options = dict(search.SPACES[name][0], mixup_alpha=1.0)
  if "class_divergence" in options:
    options |= {"reweight_mixed": True}
  made = methods.make(name, setup, **options)
  plain = methods.make("mixup", setup, mixup_alpha=1.0)
  params = {"w": jnp.array([[0.3, -0.3], [0.3, -0.3]]), "b": jnp.zeros(2)}
  value = lambda m, update: m.loss(
    params,
    m.model_state({}, _SIZE),
    {**batch, "update": update},
    jax.random.key(3),
  )[0]
  np.testing.assert_allclose(value(made, 9), value(plain, 9), rtol=1e-6)
  assert value(made, 11) != value(plain, 11)


def test_the_memory_is_fitted_at_the_end_of_an_epoch():
  config = _short(
    method="dynamic_bootstrapping",
    options={"burnin": 0.0, "prediction": "hard"},
    updates_per_step=6,
  )
  made = experiment.build(config)
  state, batches = made.init(jax.random.key(0)), made.batches(0)
  step = jax.jit(made.step)
  noisy = []
  for _ in range(3):
    state, _ = step(state, next(batches))
    noisy.append(np.asarray(state.model_state["memory"].noisy))
  assert not noisy[0].any() and noisy[1].any()
  np.testing.assert_array_equal(noisy[1], noisy[2])
  assert (state.model_state["memory"].losses > 0).all()


@pytest.mark.parametrize(
  "name", [pytest.param("dynamic_mixup", marks=pytest.mark.slow), "cicw_mixup"]
)
def test_a_residual_network_trains_alone(name):
  config = _short(
    model={"kind": "resnet", "width": 16, "stage_sizes": (1,)},
    noise=("symmetric:0.4",),
    num_seeds=1,
    method=name,
    options=search.trials(name, 1)[0],
    crop_pad=1,
    updates_per_step=3,
    detect_epochs=1,
  )
  made = experiment.build(config)
  state = made.init(jax.random.key(0))
  own = lambda s: trees.flatten((s.params, s.model_state["net"]["batch_stats"]))
  before = own(state)
  state, found = jax.jit(made.step)(state, next(made.batches(0)))
  assert state.step == 1 and np.isfinite(found["loss"].value())
  still = {p for p, x in own(state).items() if np.array_equal(x, before[p])}
  # A norm follows, which takes the scale of the stem out again.
  assert still <= {"0/stem_norm/batch/scale"}
  values = made.evals["test"].run(state)
  assert 0 <= values["replica_0/accuracy"] <= 1
  assert 0 <= made.evals["detection"].run(state)["auc"] <= 1


@pytest.mark.parametrize("variant", ["gpu", "paper", "paper_cifar100"])
def test_the_variants_pass_the_check_without_data(variant):
  report = check.run(experiment.build(_config(variant)), axes={"data": 1})
  classes = 100 if variant.endswith("100") else 10
  assert report.num_params == 11_172_298 - 10 * 513 + classes * 513 - 0
  config = _config("paper")
  assert experiment.plan(config).num_updates == 143 * 351


def test_the_steps_of_the_paper_drop_by_tenths():
  config = _config("paper")
  made = experiment.plan(config)
  rate = experiment._schedule(config, made)
  at = [round(e * 50_000 / 128) for e in (29, 31, 79, 81, 109, 111)]
  wanted = [0.1, 0.01, 0.01, 0.001, 0.001, 0.0001]
  np.testing.assert_allclose([rate(k) for k in at], wanted, rtol=1e-5)


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"method": "cicv"}, "cicw_mixup"),
    ({"noise": ("symmetrical:0.4",)}, "symmetric"),
    ({"noise": ("symmetric:x",)}, "symmetric:x"),
    ({"model": {"kind": "cnn"}}, "resnet"),
    ({"updates_per_step": 7}, "updates_per_step"),
    ({"data": {"name": "digit"}}, "digits"),
  ],
)
def test_mistakes_are_named(changes, match):
  with pytest.raises(ValueError, match=match):
    experiment.build(_short(**changes))


@pytest.mark.slow
def test_the_overhead_is_measured_against_cross_entropy():
  rows = bench_overhead.measure(
    batch=8, size=8, width=16, stage_sizes=(1,), num=2
  )
  assert [r["method"] for r in rows] == list(bench_overhead.METHODS)
  assert rows[0]["step_ratio"] == 1 and rows[0]["added_percent"] == 0
  assert all(r["step_ms"] > 0 and r["weights_ms"] > 0 for r in rows)
