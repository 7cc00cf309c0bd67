"""Code completion, trained and measured offline with engines and users.

`build` makes one run: a method (`CONDITIONS`) with a seed, and a language for
models of one. `run` trains all of them, asks each (`asking.py`), and writes
tables and a figure (`report.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import programs, stages, study
from experiments.completion import (
  asking,
  conditions,
  corpora,
  feeding,
  models,
  report,
  settings,
)
from locojax import decode
from locojax.core import types
from locojax.nn import lm, seq2seq
from locojax.train import distributed, experiment, optimizers, sharding, steps

Experiment = experiment.Experiment
check, check_run = settings.check, settings.check_run
# What does not change a run: which others there are, and what it is asked.
_NOT_IN_A_RUN = ("methods", "seeds", "eval", "ask", "user", "ngram")


def _vocab_size(config) -> int:
  if not config.needs_data:
    return config.tokenizer.vocab_size
  return corpora.tokenizer(config).vocab_size


def _optimizer(config):
  options = config.optimizer.to_dict()
  schedule = optimizers.schedule(
    options["schedule"],
    learning_rate=options["learning_rate"],
    num_steps=config.num_steps,
    warmup_steps=options["warmup_steps"],
    final=options["final"],
  )
  return optimizers.make(
    options["name"],
    learning_rate=schedule,
    weight_decay=options["weight_decay"],
    decay_paths="kernel$",
    clip_norm=options["clip_norm"] or None,
    stacked_paths=r"(^|/)blocks/" if config.model.scan else (),
    **options["options"],
  )


def _begin(model, key) -> types.PyTree:
  tokens = jnp.zeros((1, 2), jnp.int32)
  given = {"inputs": tokens} if isinstance(model, seq2seq.Seq2SeqLM) else {}
  return model.init(key, tokens, **given)["params"]


def _shapes(config, rows: int):
  whole = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.int32)
  return {
    "inputs": whole(config.model.max_inputs),
    "num_inputs": whole(),
    "targets": whole(config.model.max_targets),
    "num_targets": whole(),
  }


def _evaluator(config, loss_fn):
  """Cross-entropy and accuracy of the targets of the validation part."""
  one = jax.jit(lambda params, b: loss_fn(params, {}, b, None)[1][0])

  def run(state):
    sums: dict[str, Any] = {}
    for batch in feeding.evaluation(config):
      for name, found in one(state.params, batch).items():
        sums[name] = sums[name].merge(found) if name in sums else found
    keep = ("cross_entropy", "accuracy")
    return {name: float(sums[name].value()) for name in keep}

  return run


def rules():
  """Large arrays lie over the data axis, row by row."""
  return ((r"(kernel|embedding)$", sharding.fsdp("data")),)


def build(config) -> Experiment:
  """One run: `config.method` with `config.seed`.

  Raises:
    ValueError: a bad setting; a method that is not trained.
  """
  check(config)
  if conditions.CONDITIONS[config.method].kind == "ngram":
    raise ValueError(
      "method='ngram' is not allowed here: it counts, and is not trained."
    )
  model = models.module(config, _vocab_size(config))
  loss_fn, tx = models.loss(config, model), _optimizer(config)

  def init(key):
    begin_key, run_key = jax.random.split(key)
    return steps.init_state(_begin(model, begin_key), tx, key=run_key)

  evals = {}
  if config.needs_data:
    every = max(1, config.num_steps // config.num_evals)
    run_eval = _evaluator(config, loss_fn)
    evals["validation"] = experiment.Eval(every, run_eval)
  return Experiment(
    init=init,
    step=steps.from_loss(loss_fn, tx),
    batches=functools.partial(feeding.batches, config),
    num_steps=config.num_steps,
    batch_shapes=_shapes(config, config.batch_size),
    rules=rules() if config.model.scan else (),
    evals=evals,
    examples_per_step=config.batch_size,
  )


def build_serving(config) -> Experiment:
  """Lines for requests as a step that changes nothing, for `--mode=check`."""
  check(config)
  vocab = _vocab_size(config)
  whole = models.module(config, vocab)
  num, rows = config.ask.max_new_tokens, config.eval_batch_size
  is_pair = isinstance(whole, seq2seq.Seq2SeqLM)
  prompt = 1 if is_pair else config.model.max_inputs
  model = whole.clone(cache_len=prompt + num)

  def init(key):
    return types.TrainState(
      step=jnp.zeros((), jnp.int32),
      params=_begin(whole, key),
      model_state={},
      opt_state=(),
      key=key,
    )

  def step(state, batch):
    valid = jnp.arange(batch["inputs"].shape[1]) < batch["num_inputs"][:, None]
    tokens, memory, given = batch["inputs"], None, valid
    if is_pair:
      memory = whole.apply(
        {"params": state.params}, tokens, valid=valid, method="encode"
      )
      tokens, given = jnp.zeros((rows, 1), jnp.int32), None
    cache, kept, logits = lm.prefill(
      model,
      state.params,
      tokens,
      valid=given,
      memory=memory,
      memory_valid=valid if is_pair else None,
    )
    found = decode.beam_search(
      lm.next_token(model, state.params, kept),
      cache,
      logits,
      beam_size=config.ask.beam_size,
      max_new_tokens=num,
      stop_tokens=(1,),
      alpha=config.ask.alpha,
      data_axis=decode.cache.even("data", rows),
    )
    out = {"loss": -found.scores.sum(), "tokens": found.tokens}
    return dataclasses.replace(state, step=state.step + 1), out

  shapes = _shapes(config, rows)
  return Experiment(
    init=init,
    step=step,
    batches=lambda start: iter(()),
    num_steps=1,
    batch_shapes={k: shapes[k] for k in ("inputs", "num_inputs")},
    rules=rules() if config.model.scan else (),
    examples_per_step=rows,
  )


def checked(config) -> dict[str, Experiment]:
  """What `--mode=check` looks at besides the step, by name."""
  return {"serving": build_serving(config)}


def fit_state(config, folder: pathlib.Path) -> types.TrainState:
  """One run to its end; the final state of a finished one."""
  return stages.fit(
    build(config),
    config,
    folder,
    log_every=config.log_every,
    save_every=config.save_every,
    may_differ=_NOT_IN_A_RUN,
  )


def fit(config, folder: pathlib.Path) -> Mapping[str, Any]:
  """One run; its result, or why it diverged."""
  out = stages.fit_once(build, config, folder, may_differ=_NOT_IN_A_RUN)
  if distributed.is_main():
    corpora.tokenizer(config).save(folder / asking.TOKENIZER)
  return out


def _cells(config, languages) -> list[tuple[str, str, int]]:
  """Method, language ('' for all) and seed of each model."""
  out = []
  for method in config.methods:
    one = conditions.CONDITIONS[method].one_language
    for language in languages if one else ("",):
      seeds = report.seeds_of(config, method)
      out += [(method, language, seed) for seed in seeds]
  return out


def _cell(made: study.Study, cell, languages) -> None:
  method, language, seed = cell
  one = stages.changed(made.config, method=method, language=language, seed=seed)
  where = report.folder(made.workdir, method, language, seed)
  name = " ".join(x for x in (method, language) if x) + f", seed {seed}"
  asked = (language,) if language else languages
  if conditions.CONDITIONS[method].kind == "ngram":
    count = lambda: asking.ask(one, where, lambda: models.NGrams(one), asked)
    made.cell(name, where, count, end="counted", typical=False)
    return
  found = made.cell(name, where, functools.partial(fit, one, where))
  if "diverged" in found:
    return

  def model():
    params = jax.tree.map(np.asarray, fit_state(one, where).params)
    return models.completer(one, params, corpora.tokenizer(one))

  asking.ask(one, where, model, asked)


def tell_missing(config, languages) -> None:
  """Says which languages have no engine here, and what is left out for it."""
  if not config.eval.num_members or config.eval.engine == settings.NO_ENGINE:
    return
  found = asking.engines_of(config, languages)
  missing = [name for name in languages if name not in found]
  if missing:
    stages.say(
      f"no engine is installed for {', '.join(missing)}: re-ranked lists, "
      "checked lines and simulated users are left out there. Install it "
      "(`./scripts/install_engines`) and run the same command again: nothing "
      "is trained anew."
    )


def run(config, workdir: str) -> dict[str, Any]:
  """All methods over all seeds; resumes.

  Returns:
    The rows of the tables and the paths of what was written.
  """
  languages = corpora.load(config).languages
  cells = _cells(config, languages)
  with (
    study.opened(
      config, workdir, num_cells=len(cells), may_differ=_NOT_IN_A_RUN
    ) as made,
    programs.kept(made.workdir),
  ):
    tell_missing(config, languages)
    for cell in cells:
      _cell(made, cell, languages)
    distributed.sync("asked")
    engines = asking.engines_of(config, languages)
    return report.write(made, languages, engines)
