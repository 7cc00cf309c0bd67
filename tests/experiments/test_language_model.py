"""The transformer experiment: both methods, cover, sharding, corpus."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.locoprop import corpus, language_model
from experiments.locoprop.configs import transformer
from locojax.core import trees
from locojax.methods import locoprop
from locojax.train import check, sharding


def _config(variant="tiny", **changes):
  config = transformer.get_config(variant)
  with config.unlocked():
    config.update(changes)
  return config


@functools.lru_cache
def _built(method="locoprop"):
  return language_model.build(_config(method=method))


@functools.lru_cache
def _state():
  return jax.jit(_built().init)(jax.random.key(0))


def _batch():
  return next(_built().batches(0))


def test_tiny_trains_with_both_methods_and_resumes(tmp_path):
  config = _config()
  first = language_model.run(config, str(tmp_path))
  assert [r["method"] for r in first["rows"]] == list(language_model.METHODS)
  for row in first["rows"]:
    folder = tmp_path / row["method"] / "seed_0"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [r["eval/test_loss"] for r in rows if "eval/test_loss" in r]
    assert losses[0] > 5.4  # log(256) is 5.5
    assert losses[-1] < 3.2, row
    assert row["test_loss"] == [losses[-1]] and row["step_ms"][0] > 0
    assert rows[-1]["step"] == config.num_steps
  assert language_model.run(config, str(tmp_path)) == first
  values = language_model.evaluate(config, str(folder))
  assert values["eval/test_loss"] == losses[-1]


def _covered(paths):
  tails = ["query", "key", "value", "out", "up", "down", "output"]
  return {p for p in paths if p.split("/")[-2] in tails}


def test_fallback_has_exactly_the_norms_and_the_embeddings():
  state = _state()
  paths = set(trees.flatten(state.params))
  rest = paths - _covered(paths)
  assert all("norm/" in p or p.endswith("/embedding") for p in rest)
  assert len(rest) == 2 + 2 * (2 * 2 + 1)  # embeddings, scales and biases
  moments = [p for p in trees.flatten(state.opt_state) if "/mu/" in p]
  by_part = {
    name: {p.split("/mu/")[1] for p in moments if f"/{name}/" in p}
    for name in ("inner", "fallback")
  }
  assert by_part["inner"] == _covered(paths)
  assert by_part["fallback"] == rest


def test_every_covered_layer_has_the_transfer_it_applies():
  rules = language_model.transfers("relu", "softmax")
  loss_fn = language_model.make_loss(
    language_model.make_model(**_config().model.to_dict())
  )
  args = (_state().params, {}, _batch(), jax.random.key(0))
  paths = locoprop.layer_paths(
    loss_fn, *args, filter=functools.partial(trees.matches, patterns=rules)
  )
  assert len(paths) == 2 * 6 + 1
  found = {}
  for path in paths:
    hits = [t for r, t in rules.items() if trees.matches(path, r)]
    assert len(hits) == 1
    found.setdefault(hits[0], set()).add(path.split("/")[-1])
  assert found == {
    "linear": {"query", "key", "value", "out", "down"},
    "relu": {"up"},
    "softmax": {"output"},
  }


def test_target_of_the_output_layer_is_the_label():
  loss_fn = language_model.make_loss(
    language_model.make_model(**_config().model.to_dict())
  )
  batch = _batch()
  run = locoprop.capture(loss_fn, filter=lambda p: p == "output")
  _, _, tape = jax.jit(run)(_state().params, {}, batch, jax.random.key(0))
  record = tape.records["output"]
  num_tokens = batch["tokens"][:, 1:].size
  target = jax.nn.softmax(record.preact) - num_tokens * record.preact_grad
  want = jax.nn.one_hot(batch["tokens"][:, 1:], 256)
  np.testing.assert_allclose(target, want, atol=1e-5)


@functools.lru_cache
def _after(layout, data, model):
  """Displacement and loss after a step, laid out on a mesh."""
  built = _sgd_experiment(layout)
  mesh = sharding.make_mesh(
    {"data": data, "model": model}, jax.devices()[: data * model]
  )
  shapes = jax.eval_shape(built.init, jax.random.key(0))
  layouts = sharding.state_shardings(shapes, mesh, built.rules)
  with jax.set_mesh(mesh):
    init = jax.jit(built.init, out_shardings=layouts)
    state = init(jax.random.key(0))
    batch = _batch()
    batch = jax.device_put(
      batch, sharding.batch_shardings(batch, mesh, built.batch_spec)
    )
    step = jax.jit(built.step, out_shardings=(layouts, None))
    new, metrics = step(state, batch)
  moved = jax.tree.map(lambda a, b: b - a, state.params, new.params)
  return jax.device_get((moved, metrics["loss"])), new


def _sgd_experiment(layout):
  """Local SGD, whose step does not blow up rounding where a gradient is 0."""
  config = _config(layout=layout)
  with config.unlocked():
    config.warmup_steps = 0
    config.model.num_layers = 1
    config.locoprop.inner = "sgd"
    config.locoprop.learning_rate = 1e-3
  return language_model.build(config)


@pytest.mark.parametrize(
  "layout, data, model",
  [("model", 4, 2), ("fsdp", 2, 4)],
)
def test_a_sharded_step_is_the_unsharded_step(layout, data, model):
  (want, loss), _ = _after("replicated", 1, 1)
  (got, sharded_loss), state = _after(layout, data, model)
  np.testing.assert_allclose(
    sharded_loss.total / sharded_loss.weight, loss.total / loss.weight, 1e-6
  )
  want, got = trees.flatten(want), trees.flatten(got)
  for path in _covered(set(want)):
    scale = np.max(np.abs(want[path]))
    if path.endswith("key/bias"):  # its gradient is rounding alone
      continue
    assert scale > 0, path
    error = np.max(np.abs(got[path] - want[path]))
    assert error < 2e-4 * scale, (path, error / scale)
  spec = state.params["output"]["kernel"].sharding.spec
  assert "model" in jax.tree.leaves(tuple(spec))


@pytest.mark.parametrize("method", language_model.METHODS)
def test_paper_passes_the_check_of_shapes_and_shardings(method):
  config = _config("paper", method=method)
  report = check.run(language_model.build(config), axes=dict(config.mesh))
  assert report.num_params == 93_646_848
  assert "P(None, model)" in report.text
  assert report.state_bytes["all"] < 2**30


def test_a_tied_model_leaves_its_embedding_to_the_fallback():
  config = _config()
  with config.unlocked():
    config.model.tie_embedding = True
  built = language_model.build(config)
  state = jax.jit(built.init)(jax.random.key(0))
  assert "output" not in state.params
  new, metrics = jax.eval_shape(built.step, state, _batch())
  assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize("name", ["grammar", "python"])
def test_corpora_are_deterministic_windows(name):
  load = lambda: corpus.load.__wrapped__(
    name, length=32, vocab_size=256, num_bytes=30_000
  )
  first, again = load(), load()
  for split in ("train", "test"):
    np.testing.assert_array_equal(first[split], again[split])
    assert first[split].shape[1] == 33
  windows = first["train"]
  np.testing.assert_array_equal(windows[1:, 0], windows[:-1, -1])
  assert len(first["train"]) > 15 * len(first["test"])


def test_own_tokens_from_a_file(tmp_path):
  path = tmp_path / "tokens.npy"
  np.save(path, np.arange(2000, dtype=np.uint16) % 700)
  load = functools.partial(corpus.load, "file", length=8, path=str(path))
  np.testing.assert_array_equal(load(vocab_size=700)["train"][0], np.arange(9))
  with pytest.raises(ValueError, match="vocab_size=699.*token 699"):
    load(vocab_size=699)
  with pytest.raises(ValueError, match="max_len=200"):
    corpus.load("file", length=200, vocab_size=700, path=str(path))


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"method": "adam"}, "did you mean 'adamw'"),
    ({"layout": "fsd"}, "did you mean 'fsdp'"),
    ({"model.activation": "gelu"}, "model.activation='gelu'"),
    ({"model.dtype": "float16"}, "model.dtype='float16'"),
    ({"locoprop.output": "tanh"}, "locoprop.output='tanh'"),
  ],
)
def test_mistakes_in_the_config_are_named(changes, said):
  config = _config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=said):
    language_model.build(config)


def test_mistakes_about_the_corpus_are_named():
  with pytest.raises(ValueError, match="did you mean 'python'"):
    corpus.load("pyton", length=8, vocab_size=256)
  with pytest.raises(ValueError, match="data.path=''"):
    corpus.load("file", length=8, vocab_size=256)
  with pytest.raises(ValueError, match="variant='huge'"):
    transformer.get_config("huge")


def test_loss_is_the_cross_entropy_of_the_next_byte():
  model = language_model.make_model(**_config().model.to_dict())
  params, batch = _state().params, _batch()
  loss, (metrics, _) = language_model.make_loss(model)(params, {}, batch, None)
  logits = model.apply({"params": params}, jnp.asarray(batch["tokens"])[:, :-1])
  logp = np.asarray(jax.nn.log_softmax(logits))
  picked = np.take_along_axis(logp, batch["tokens"][:, 1:, None], -1)
  np.testing.assert_allclose(loss, -picked.mean(), rtol=1e-5)
  assert float(metrics["loss"].weight) == batch["tokens"][:, 1:].size
