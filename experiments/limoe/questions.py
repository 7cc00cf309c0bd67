"""What is asked of a trained model: zero-shot, retrieval, probe, experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.limoe import pairs
from locojax.core import types
from locojax.data import pieces, pipeline
from locojax.methods import limoe


class Embedder:
  """Unit vectors of images and of texts by a model, batch by batch.

  Args:
    net, state: the model and its state.
    tokenizer: of the texts.
    length: tokens of a text.
    batch_size: of each call.
    use_mask: whether padding is left out, as in training.
  """

  def __init__(
    self,
    net: limoe.OneTower,
    state: types.TrainState,
    tokenizer: pieces.Pieces,
    length: int,
    *,
    batch_size: int,
    use_mask: bool,
  ):
    self.tokenizer, self.length = tokenizer, length
    self._size, self._use_mask = batch_size, use_mask
    variables = {"params": state.params, **state.model_state}

    def image(variables, batch):
      x = batch["image"].astype(jnp.float32) / 127.5 - 1.0
      return net.apply(variables, x).z_image

    def text(variables, batch):
      mask = batch["text_mask"] if use_mask else None
      return net.apply(variables, None, batch["text"], mask).z_text

    self._variables = variables
    # On every process whole: they all go on with the same vectors.
    whole = state.step.sharding
    self._image = jax.jit(image, out_shardings=whole)
    self._text = jax.jit(text, out_shardings=whole)

  def _run(self, f, arrays) -> np.ndarray:
    parts = []
    for batch in pipeline.padded_batches(arrays, batch_size=self._size):
      mask = batch.pop("mask")
      z = np.asarray(f(self._variables, batch))
      parts.append(z[mask != 0])
    return np.concatenate(parts)

  def images(self, images: np.ndarray) -> np.ndarray:
    """`[n, d]` of uint8 images."""
    return self._run(self._image, {"image": images})

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """`[n, d]` of texts."""
    tokens, mask = self.tokenizer.encode(texts, self.length)
    arrays = {"text": tokens, "text_mask": mask.astype(np.int8)}
    return self._run(self._text, arrays)


def ask(embedder: Embedder, test: pairs.ZeroShot) -> dict[str, float]:
  """Zero-shot accuracy and recall.

  Returns:
    `zero_shot`: top-1 by prompt ensembling; `i2t@k`: the name is among the k
    nearest; `t2i@k`: one of the name's images is.
  """
  z = embedder.images(test.image)
  classes = limoe.class_embeddings(embedder.texts, test.names, test.templates)
  classes = np.asarray(classes)
  relevant = test.label[:, None] == np.arange(len(test.names))[None]
  ks = [k for k in (1, 5) if k <= min(len(test.names), len(test.image))]
  there = limoe.retrieval_recall(z, classes, relevant, ks)
  asked = relevant.any(axis=0)
  back = limoe.retrieval_recall(classes[asked], z, relevant.T[asked], ks)
  return {
    "zero_shot": there[1],
    **{f"i2t@{k}": v for k, v in there.items() if k > 1},
    **{f"t2i@{k}": v for k, v in back.items()},
  }


def ridge_probe(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  *,
  num_classes: int,
  l2: float = 1.0,
) -> float:
  """Accuracy of ridge regression onto one-hot labels, with an intercept.

  Args:
    train, test: `([n, d], [n])` features and labels.
    num_classes: of the labels.
    l2: weight of the penalty.
  """
  extend = lambda x: np.concatenate(
    [np.asarray(x, np.float64), np.ones((len(x), 1))], axis=1
  )
  x, y = extend(train[0]), np.eye(num_classes)[train[1]]
  w = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
  return float(((extend(test[0]) @ w).argmax(axis=1) == test[1]).mean())


def _few_and_rest(label: np.ndarray, shots: int, seed: int):
  """Rows: `shots` of every class that has more, and the others."""
  order = np.random.default_rng(seed).permutation(len(label))
  few, rest = [], []
  for c in np.unique(label):
    own = order[label[order] == c]
    if len(own) > shots:
      few += own[:shots].tolist()
      rest += own[shots:].tolist()
  return np.array(few, int), np.array(rest, int)


def probe_of(config, net, state) -> dict[str, float]:
  """`num_probe`-shot linear probes on the tests whose classes are many-imaged.

  A test whose images do not suffice for one image more than the shots of at
  least two classes has none; its shots fall to what there is, at least 1.
  """
  data = config.data.to_dict()
  embedder = Embedder(
    net,
    state,
    pairs.tokenizer(data),
    config.data.text_length,
    batch_size=config.eval_batch_size,
    use_mask=config.mask_padding,
  )
  out = {}
  for name, test in pairs.load(data).tests.items():
    counts = np.bincount(test.label, minlength=len(test.names))
    shots = min(config.num_probe, int(np.median(counts[counts > 0])) - 1)
    if shots < 1:
      continue
    few, rest = _few_and_rest(test.label, shots, data["seed"])
    z = embedder.images(test.image)
    out[name] = ridge_probe(
      (z[few], test.label[few]),
      (z[rest], test.label[rest]),
      num_classes=len(test.names),
    )
  return out


@dataclasses.dataclass(frozen=True)
class Looked:
  """What the experts of a model do.

  Attributes:
    tables: `demand` `[2, E]` of each layer, rows as `limoe.MODALITIES`.
    images: `[n, size, size, 3]` uint8, some test images.
    patches: `[layers, n, T]`, expert of each patch.
    words: by layer and expert, the pieces that it gets most, with counts.
  """

  tables: list[np.ndarray]
  images: np.ndarray
  patches: np.ndarray
  words: list[list[list[tuple[str, int]]]]


def look(config, net, state, *, num_pairs: int = 256) -> Looked:
  """Routes pairs of the tests without capacity, and counts."""
  data = config.data.to_dict()
  test = next(iter(pairs.load(data).tests.values()))
  rng = np.random.default_rng(data["seed"])
  rows = rng.permutation(len(test.image))[:num_pairs]
  texts = [limoe.canonical(test.names[i]) for i in test.label[rows]]
  tokenizer = pairs.tokenizer(data)
  tokens, mask = tokenizer.encode(texts, data["text_length"])
  x = test.image[rows].astype(np.float32) / 127.5 - 1.0
  given = mask if config.mask_padding else None
  out = jax.jit(net.apply, out_shardings=state.step.sharding)(
    {"params": state.params, **state.model_state}, x, tokens, given
  )
  num = config.experts.num_experts
  tables, patches, words = [], [], []
  modality = np.asarray(out.modality)
  for info in out.infos:
    found = limoe.expert_table(info, out.modality, mask=out.mask)
    tables.append(np.asarray(found["demand"]))
    expert = np.asarray(info.expert)[..., 0]
    own = [expert[modality == i].reshape(len(rows), -1) for i in (0, 1)]
    patches.append(own[0][:8])
    words.append(_most(own[1], tokens, mask, num, tokenizer))
  return Looked(tables, test.image[rows][:8], np.stack(patches), words)


def _most(expert, tokens, mask, num, tokenizer, top: int = 8):
  """For each expert its most frequent pieces, `(piece, count)`."""
  out = []
  for e in range(num):
    own = tokens[(expert == e) & (mask != 0)]
    kinds, counts = np.unique(own, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:top]
    out.append([(tokenizer.piece(kinds[i]), int(counts[i])) for i in order])
  return out


def as_rows(looked: Looked) -> list[Mapping[str, Any]]:
  """Rows of a result file: an expert of a layer each."""
  return [
    {
      "layer": layer,
      "expert": e,
      "image_tokens": float(table[0, e]),
      "text_tokens": float(table[1, e]),
      "pieces": " ".join(f"{p}:{n}" for p, n in looked.words[layer][e]),
    }
    for layer, table in enumerate(looked.tables)
    for e in range(table.shape[1])
  ]
