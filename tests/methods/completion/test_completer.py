"""Models are asked: constraints hold, caches and batches change nothing."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from locojax.methods import completion
from locojax.methods.completion import training
from locojax.train import steps
from tests.methods.completion import small

KINDS = ("encoder_decoder", "decoder_only")
PREFIX, SUFFIX = "def name_1(items):\n  tot", "\nreturn total\n"
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)


@functools.cache
def _completer(kind="encoder_decoder", **settings):
  model, params = small.model(kind)
  return completion.Completer(
    model,
    params,
    small.tokenizer(),
    max_inputs=32,
    buckets=(16, 32),
    max_new_tokens=5,
    beam_size=3,
    name_beams=6,
    **settings,
  )


def _batch(kind, examples):
  make = (
    completion.encoder_decoder_batch
    if kind == "encoder_decoder"
    else completion.decoder_batch
  )
  return make(examples, small.tokenizer(), max_inputs=32, max_targets=12)


@functools.cache
def _loss(kind, context_weight=0.0):
  model, _ = small.model(kind)
  loss = completion.make_loss_fn(
    model, z_loss=0.0, context_weight=context_weight
  )
  return jax.jit(lambda p, b: loss(p, {}, b, None)[1][0])


def _log_prob(kind, prefix, suffix, target, stop=True):
  """Of a target's tokens and the end, by the loss, without any cache."""
  e = completion.Example(prefix, target, suffix, "python")
  batch = _batch(kind, [e])
  batch["num_targets"] = batch["num_targets"] - (not stop)
  found = _loss(kind)(small.model(kind)[1], batch)["cross_entropy"]
  return -float(found.total)


@pytest.mark.parametrize("kind", KINDS)
def test_a_suggestion_has_the_probability_that_training_gives_it(kind):
  """Cached decoding is uncached, and prompts are those of training."""
  ask = _completer(kind)
  found = ask.lines(PREFIX + " ", SUFFIX, "python")
  assert found and len({s.text for s in found}) == len(found) <= 3
  tok, compared = small.tokenizer(), 0
  for s in found:
    assert "\n" not in s.text and s.text.strip()
    if tuple(tok.encode(s.text)) == s.tokens and not s.finished:
      want = _log_prob(kind, PREFIX + " ", SUFFIX, s.text, stop=False)
      close(s.log_prob, want)
      compared += 1
    assert s.confidence == math.exp(s.log_prob / s.num_tokens)
  assert compared


def test_what_is_forced_stands_first_and_what_is_typed_is_healed():
  ask = _completer()
  for s in ask.lines(PREFIX, SUFFIX, "python"):
    assert s.text and not s.text.startswith("tot")
  for s in ask.lines(PREFIX, SUFFIX, "python", forced="al += q"):
    assert s.text.startswith("al += q")
  for s in ask.continue_focused(PREFIX, SUFFIX, "python", "totem"):
    assert s.text.startswith("em")
  long = "z" * 120
  for s in ask.lines(PREFIX, SUFFIX, "python", forced=long):
    assert s.text.startswith(long)
  with pytest.raises(ValueError, match="item='item'.*'tot'"):
    ask.continue_focused(PREFIX, SUFFIX, "python", "item")
  with pytest.raises(ValueError, match="language='pyhton'"):
    ask.lines(PREFIX, SUFFIX, "pyhton")


def test_names_are_identifiers_with_their_probabilities():
  ask = _completer()
  for prefix, typed in ((PREFIX, "tot"), (PREFIX + "al += ", "")):
    names = ask.names(prefix, SUFFIX, "python")
    assert names and all(n.text.isidentifier() for n in names)
    assert all(n.text.startswith(typed) for n in names)
    shares = [n.probability for n in names]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
  # One name's probability, summed over every token that may end it.
  model, params = small.model()
  tok = small.tokenizer()
  name = next(n for n in names if len(tok.encode(n.text)) < 8)
  e = completion.Example(prefix, name.text + "\n", SUFFIX, "python")
  batch = _batch("encoder_decoder", [e])
  logits, targets, real = jax.jit(lambda p, b: training._logits(model, p, b))(
    params, batch
  )
  log_probs = jax.nn.log_softmax(logits[0].astype(jnp.float32))
  num = len(tok.encode(name.text))
  total = sum(float(log_probs[i, targets[0, i]]) for i in range(num))
  ends = [
    t
    for t, piece in enumerate(tok.pieces)
    if t == tok.eos
    or (piece and not (chr(piece[0]).isalnum() or piece[:1] == b"_"))
    and piece[0] < 128
  ]
  # Within the words and ends that are looked at, as a share of these.
  word = [
    bool(p.decode(errors="replace").isidentifier() or p.isdigit())
    for p in tok.pieces
  ]
  looked = np.array(word) | np.isin(np.arange(tok.vocab_size), ends)
  for i in range(num + 1):
    total -= float(jax.nn.logsumexp(log_probs[i][looked]))
  total += float(jax.nn.logsumexp(log_probs[num][np.array(ends)]))
  close(math.log(name.probability), total, rtol=2e-2)


def test_nothing_is_compiled_after_the_warm_up():
  ask = _completer()
  ask.warm_up()
  before = ask.num_traces
  for prefix in ("", "x", PREFIX, small.TEXT[:900], small.TEXT[:300] + "to"):
    for suffix in ("", SUFFIX, small.TEXT):
      ask.lines(prefix, suffix, "python", allow_empty=True)
      ask.names(prefix, suffix, "go")
  assert ask.num_traces == before
  assert ask.warm_up() == 0


def test_a_tree_search_finds_lines_too():
  ask = _completer(search="tree", node_budget=24)
  found = ask.lines(PREFIX, SUFFIX, "python", forced="al")
  assert found and all(s.text.startswith("al") for s in found)
  with pytest.raises(ValueError, match="search='deep'"):
    completion.Completer(
      *small.model(), small.tokenizer(), max_inputs=32, search="deep"
    )


def test_several_lines_are_lines_one_by_one():
  ask = _completer()
  prefix = PREFIX + "al\n"
  found = ask.several_lines(
    prefix, SUFFIX, "python", thresholds=[0.0], max_lines=2
  )
  assert 1 <= len(found) <= 2
  assert found[0] == ask.lines(prefix, SUFFIX, "python")[0]
  if len(found) == 2:
    again = f"{prefix}{found[0].text}\n"
    assert found[1] == ask.lines(again, SUFFIX, "python")[0]
  assert not ask.several_lines(prefix, SUFFIX, "python", thresholds=[1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_other_rows_change_no_loss(kind):
  rng = np.random.default_rng(0)
  examples = [
    completion.sample_example(small.TEXT[:n], rng, language="python")
    for n in (40, 300, 900)
  ]
  batch = _batch(kind, examples)
  params = small.model(kind)[1]
  totals = 0.0
  for i in range(3):
    alone = {k: np.repeat(v[i : i + 1], 3, axis=0) for k, v in batch.items()}
    found = _loss(kind)(params, alone)["loss"]
    totals += float(found.total) / 3
  together = _loss(kind)(params, batch)["loss"]
  close(float(together.total), totals)
  assert float(together.weight) == batch["num_targets"].sum()
  junk = {k: v.copy() for k, v in batch.items()}
  for row in range(3):
    junk["inputs"][row, batch["num_inputs"][row] :] = 7
    junk["targets"][row, batch["num_targets"][row] :] = 7
  close(float(_loss(kind)(params, junk)["loss"].total), totals)


def test_a_decoder_learns_from_its_prompt_if_asked():
  kind, weight = "decoder_only", 0.5
  e = completion.make_example(small.TEXT[:200], 150)
  batch = _batch(kind, [e])
  found = _loss(kind, weight)(small.model(kind)[1], batch)
  num = int(batch["num_targets"][0] + weight * (batch["num_inputs"][0] - 1))
  assert abs(float(found["loss"].weight) - num) <= 0.5
  with pytest.raises(ValueError, match="context_weight=1"):
    completion.make_loss_fn(small.model()[0], context_weight=1.0)


def test_training_learns_the_text():
  model, params = small.model()
  loss = completion.make_loss_fn(model)
  tx = optax.adam(1e-2)
  state = steps.init_state(params, tx, key=jax.random.key(1))
  step = jax.jit(steps.from_loss(loss, tx))
  rng = np.random.default_rng(0)
  examples = [
    completion.sample_example(small.TEXT, rng, language="python")
    for _ in range(16)
  ]
  batch = _batch("encoder_decoder", examples)
  seen = []
  for _ in range(25):
    state, metrics = step(state, batch)
    seen.append(float(metrics["cross_entropy"].value()))
  assert seen[-1] < 0.6 * seen[0]


def test_the_baseline_counts_words():
  texts = ["a.b(c)\na.b(d)\na.b(c)\n" * 3, "x = y.z\n"]
  model = completion.NGramCache(texts, order=4)
  names = model.names("a.")
  assert names[0].text == "b"
  assert sum(n.probability for n in names) <= 1
  assert [n.text for n in model.names("a.b(")][:2] == ["c", "d"]
  assert model.lines("a.b")[0].text in ("(c)", "(d)")
  assert model.lines("a.b")[0].finished
  # The cache knows words that training never saw.
  said = lambda m: [n.text for n in m.names("new.thing\nq = new.")]
  assert "thing" in said(model)[:2]
  assert "".join(completion.words(small.TEXT)) == small.TEXT
  without = completion.NGramCache(texts, order=4, cache_share=0.0)
  assert "thing" not in said(without)
