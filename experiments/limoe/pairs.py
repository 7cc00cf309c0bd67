"""Images with captions by name, and what is asked zero-shot of them.

  scenes   drawn on the spot; a share of the combinations is kept for the test
  emoji    tfds `emoji_pairs`: a vendor is kept back, and the emoji of its test
           split, of which no vendor's drawing is in training
  digits, mnist, fashion_mnist, cifar10
           labelled images with templated captions; classes may be kept back
  folder   your own (`locojax.data.captions`)

Several names together make one training set; each keeps its own tests.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import datasets, pictures, trained_on
from experiments.common import places as places_lib
from locojax.core import checks
from locojax.data import captions, pieces, scenes, sources
from locojax.methods import limoe

_DIGITS = (
  "zero",
  "one",
  "two",
  "three",
  "four",
  "five",
  "six",
  "seven",
  "eight",
  "nine",
)
_ANIMALS_AND_VEHICLES = (
  "airplane",
  "automobile",
  "bird",
  "cat",
  "deer",
  "dog",
  "frog",
  "horse",
  "ship",
  "truck",
)
_CLOTHES = (
  "t-shirt",
  "trouser",
  "pullover",
  "dress",
  "coat",
  "sandal",
  "shirt",
  "sneaker",
  "bag",
  "ankle boot",
)
CLASSES = {
  "digits": _DIGITS,
  "mnist": _DIGITS,
  "fashion_mnist": _CLOTHES,
  "cifar10": _ANIMALS_AND_VEHICLES,
}
TEMPLATES = {
  "digits": ("a handwritten digit {}", "the number {}", "{}"),
  "mnist": ("a handwritten digit {}", "the number {}", "{}"),
  "fashion_mnist": ("a gray picture of a {}", "clothing: a {}", "{}"),
  "cifar10": limoe.PHOTO,
  "emoji": ("{}", "an emoji of {}"),
}


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """Images to classify by names alone.

  Attributes:
    image: `[n, size, size, 3]` uint8.
    label: `[n]` int32, places in `names`.
    names: of the classes.
    templates: prompts with one `{}` each.
  """

  image: np.ndarray
  label: np.ndarray
  names: tuple[str, ...]
  templates: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pairs:
  """A training set and its tests.

  Attributes:
    image: `[n, size, size, 3]` uint8.
    captions: one or more texts an image.
    tests: by name.
  """

  image: np.ndarray
  captions: tuple[tuple[str, ...], ...]
  tests: Mapping[str, ZeroShot]


def scenes_pairs(data: Mapping[str, Any], size: int) -> Pairs:
  """Scenes; the test has combinations that training lacks."""
  seen, held = scenes.held_out(data["held_out_share"], seed=data["seed"])
  make = functools.partial(scenes.pairs, size=size, noise=data["noise"])
  train = make(seen, data["num_train"], seed=data["seed"] + 1)
  test = make(held, data["num_test"], seed=data["seed"] + 2)
  places = {c: i for i, c in enumerate(held)}
  names = tuple(scenes.caption(scenes.COMBINATIONS[c]) for c in held)
  label = np.array([places[c] for c in test["combination"]], np.int32)
  return Pairs(
    train["image"],
    tuple((str(c),) for c in train["caption"]),
    {"unseen_combinations": ZeroShot(test["image"], label, names, ("{}",))},
  )


def _emoji_rows(data: Mapping[str, Any], split: str):
  """Images `[n, 48, 48, 4]`, names, keywords, vendors of a split."""
  source = sources.from_tfds(
    "emoji_pairs", split=split, data_dir=data["data_dir"] or None
  )
  rows = [source[i] for i in range(len(source))]
  text = lambda key: [np.asarray(r[key]).item().decode("utf-8") for r in rows]
  images = np.stack([r["image"] for r in rows])
  names = [name.replace(",", " ") for name in text("name")]
  words = [several.split(",") for several in text("keywords")]
  known = (source.directory / "vendor.labels.txt").read_text().split()
  return images, names, words, np.array([known[r["vendor"]] for r in rows])


def _named(images, names) -> ZeroShot:
  """Classes are the distinct names."""
  classes = tuple(sorted(set(names)))
  places = {n: i for i, n in enumerate(classes)}
  label = np.array([places[n] for n in names], np.int32)
  return ZeroShot(images, label, classes, TEMPLATES["emoji"])


def emoji_pairs(data: Mapping[str, Any], size: int) -> Pairs:
  """Emoji of all vendors but one; tests as the head of this file says."""
  images, names, words, vendors = _emoji_rows(data, "train")
  held = checks.one_of(
    "data.held_out_vendor", data["held_out_vendor"], sorted(set(vendors))
  )
  images = pictures.resized(images, size)
  seen = np.flatnonzero(vendors != held)
  texts = [
    (
      n,
      f"an emoji of {n}",
      " ".join([n, *w[: data["num_keywords"]]]),
    )
    for n, w in zip(names, words)
  ]
  other = np.flatnonzero(vendors == held)
  new_images, new_names, _, _ = _emoji_rows(data, "test")
  return Pairs(
    images[seen],
    tuple(texts[i] for i in seen),
    {
      "unseen_vendor": _named(images[other], [names[i] for i in other]),
      "unseen_emoji": _named(pictures.resized(new_images, size), new_names),
    },
  )


def labelled_pairs(name: str, data: Mapping[str, Any], size: int) -> Pairs:
  """Templated captions; without the classes of `held_out_classes`."""
  splits = datasets.load(name, data_dir=data["data_dir"] or None)
  classes, templates = tuple(CLASSES[name]), tuple(TEMPLATES[name])
  kept_back = [c for c in data["held_out_classes"] if c in classes]
  label = splits["train"]["label"]
  is_held = np.isin(label, [classes.index(c) for c in kept_back])
  rows = np.flatnonzero(~is_held)[: data["num_train"]]
  test = {k: v[: data["num_test"]] for k, v in splits["test"].items()}
  images = pictures.resized(test["image"], size)
  tests = {name: ZeroShot(images, test["label"], classes, templates)}
  if kept_back:
    of = {classes.index(c): i for i, c in enumerate(kept_back)}
    own = np.flatnonzero(np.isin(test["label"], list(of)))
    places = np.array([of[int(x)] for x in test["label"][own]], np.int32)
    tests[f"{name}_unseen_classes"] = ZeroShot(
      images[own], places, tuple(kept_back), templates
    )
  texts = [tuple(t.format(c) for t in templates) for c in classes]
  return Pairs(
    pictures.resized(splits["train"]["image"][rows], size),
    tuple(texts[int(x)] for x in label[rows]),
    tests,
  )


def folder_pairs(data: Mapping[str, Any], size: int) -> Pairs:
  """Your own; the test asks each image kept back for its first caption."""
  if not data["path"]:
    raise ValueError(
      "data.path='' is not allowed with the data set 'folder': it must be a "
      "folder of images with captions (see locojax.data.captions)."
    )
  path = places_lib.expanded(data["path"])
  source = captions.from_caption_folder(path, size=(size, size))
  order = np.random.default_rng(data["seed"]).permutation(len(source))
  num = max(1, round(data["held_out_share"] * len(source)))
  checks.in_range("number of captioned images", len(source), num + 1, 2**40)
  test, train = [[source[int(i)] for i in o] for o in np.split(order, [num])]
  one = _named(
    np.stack([e["image"] for e in test]),
    [e["captions"][0].replace(",", " ") for e in test],
  )
  return Pairs(
    np.stack([e["image"] for e in train]),
    tuple(tuple(e["captions"]) for e in train),
    {"folder": dataclasses.replace(one, templates=("{}",))},
  )


SETS: dict[str, Callable[[Mapping[str, Any], int], Pairs]] = {
  "scenes": scenes_pairs,
  "emoji": emoji_pairs,
  "folder": folder_pairs,
  **{n: functools.partial(labelled_pairs, n) for n in CLASSES},
}


@trained_on.cached(dict)
def _load(items: tuple) -> Pairs:
  data = dict(items)
  size = checks.positive_int("data.image_size", data["image_size"])
  parts = [
    checks.lookup("data.names", n, SETS)(data, size) for n in data["names"]
  ]
  return Pairs(
    np.concatenate([p.image for p in parts]),
    sum((p.captions for p in parts), ()),
    {name: test for p in parts for name, test in p.tests.items()},
  )


def load(data: Mapping[str, Any]) -> Pairs:
  """All sets of `data["names"]`, as one training set.

  Raises:
    ValueError: an unknown name or a bad setting.
    FileNotFoundError: a data set that is not there; says how to get it.
  """
  if not data["names"]:
    raise ValueError(f"data.names=() is not allowed: some of {sorted(SETS)}.")
  return _load(tuple(sorted(data.items())))


@trained_on.cached(dict)
def _tokenizer(items: tuple) -> pieces.Pieces:
  data = dict(items)
  if data["tokenizer"]:
    return pieces.load(places_lib.expanded(data["tokenizer"]))
  texts = sorted({t for several in load(data).captions for t in several})
  return pieces.train(texts, vocab_size=data["vocab_size"])


def tokenizer(data: Mapping[str, Any]) -> pieces.Pieces:
  """Loaded from `data["tokenizer"]`, or trained on the training captions."""
  return _tokenizer(tuple(sorted(data.items())))


def tokenized(
  texts: Sequence[Sequence[str]], model: pieces.Pieces, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """`(tokens, mask)` `[n, most captions, length]`; fewer captions repeat."""
  most = max(map(len, texts))
  distinct = sorted({t for several in texts for t in several})
  place = {t: i for i, t in enumerate(distinct)}
  tokens, mask = model.encode(distinct, length)
  rows = np.array(
    [
      [place[several[i % len(several)]] for i in range(most)]
      for several in texts
    ]
  )
  return tokens[rows], mask[rows].astype(np.int8)
