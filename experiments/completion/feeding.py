"""Batches of examples drawn from a corpus."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from experiments.completion import conditions, corpora
from locojax.data import code, code_tokens, pipeline
from locojax.methods import completion

CHUNK = 1500  # characters of a file that an epoch draws one example from


def chunks(files: Sequence[code.SourceFile]) -> np.ndarray:
  """Number of the file, first and last offset of each chunk, `[n, 3]`."""
  rows = []
  for number, file in enumerate(files):
    for low in range(0, len(file.text), CHUNK):
      high = min(len(file.text), low + CHUNK)
      if file.text[low:high].strip():
        rows.append((number, low, high))
  return np.array(rows, np.int64).reshape(-1, 3)


def drawn(config, files, rows: np.ndarray, rng) -> list[completion.Example]:
  """An example of each chunk, as the method of a config makes them."""
  made = conditions.CONDITIONS[config.method]
  settings = config.examples.to_dict()
  return [
    completion.sample_example(
      files[number].text,
      rng,
      language=files[number].language,
      masking=made.masking,
      low=int(low),
      high=int(high),
      **settings,
    )
    for number, low, high in rows
  ]


def arrays(config, examples, tokenizer: code_tokens.CodeTokenizer):
  """A batch as the model of the method takes it."""
  made, model = conditions.CONDITIONS[config.method], config.model
  shared = dict(
    max_inputs=model.max_inputs,
    max_targets=model.max_targets,
    prefix_share=model.prefix_share,
    with_suffix=made.with_suffix,
  )
  if made.kind == "decoder":
    return completion.decoder_batch(
      examples, tokenizer, order=model.order, **shared
    )
  return completion.encoder_decoder_batch(examples, tokenizer, **shared)


def batches(config, start: int):
  """Batches of training from `start` on."""
  files = corpora.of_language(corpora.load(config).train, config.language)
  tokenizer = corpora.tokenizer(config)
  rows = chunks(files)
  if len(rows) < config.batch_size:  # a small folder, several times
    rows = np.resize(rows, (config.batch_size, 3))

  def draw(batch, rng):
    examples = drawn(config, files, batch["row"], rng)
    return arrays(config, examples, tokenizer)

  return pipeline.array_batches(
    {"row": rows},
    batch_size=config.batch_size,
    seed=config.seed,
    random_map=draw,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )(start)


def evaluation(config):
  """Batches of examples of the validation part, always the same."""
  files = corpora.of_language(corpora.load(config).validation, config.language)
  size, num = config.eval_batch_size, config.eval_batches
  rows = chunks(files)
  rng = np.random.default_rng(config.data.seed)
  rows = rows[rng.permutation(len(rows))]
  rows = np.resize(rows, (size * num, 3))
  tokenizer = corpora.tokenizer(config)
  for i in range(num):
    examples = drawn(config, files, rows[i * size : (i + 1) * size], rng)
    yield arrays(config, examples, tokenizer)
