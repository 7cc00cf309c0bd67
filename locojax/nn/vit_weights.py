"""Weights of vision transformers made elsewhere, as parameters of `vit.ViT`.

Formats, told apart by the names of their tensors:

  original            `.npz` of the first release (arXiv 2010.11929), and of
                      AugReg (arXiv 2106.10270): names of flax before linen
  big_vision          `.npz` of big_vision, the tensors of each block
  big_vision_stacked  the same, with those of all blocks in one
  timm                safetensors of timm: query, key, value in one matrix
  huggingface         safetensors of Hugging Face's ViT

The names are in `vit_formats`. JAX's use the tanh form of GELU, the others the
exact one; Hugging Face's norms add 1e-12 to the variance, all others 1e-6:
`LoadedViT.settings` says it all.

Letters: L patches, T tokens, E width, H heads, D size of a head.
"""

from __future__ import annotations

import collections
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from locojax.core import checks, files, tensor_files, trees
from locojax.nn import transformer, vit, vit_formats, vit_positions

FORMATS = tuple(vit_formats.FORMATS)
Tensors = Mapping[str, np.ndarray]
# What big_vision keeps besides parameters, which older files have in target.
_TRAINING_STATE = re.compile("opt/(?!target/)")


class LoadedViT(NamedTuple):
  """A model, and its head apart.

  Attributes:
    params: of `vit.ViT(**settings)`, float32 of the host, not stacked: with
      `scan=True`, `transformer.stack_blocks(params["encoder"])`.
    settings: keywords of `vit.ViT`.
    head: `kernel` `[E, classes]` and `bias` `[classes]`, or None.
  """

  params: dict[str, Any]
  settings: dict[str, Any]
  head: dict[str, np.ndarray] | None


class _Report:
  """Collects what is wrong with tensors, for one error."""

  def __init__(self):
    self.missing: list[str] = []
    self.ill_shaped: list[str] = []
    self.extra: list[str] = []
    self.seen: set[str] = set()

  def take(self, tensors: Tensors, name: str, shape: tuple | None = None):
    """The tensor, or None if it is not there or not of this shape."""
    self.seen.add(name)
    if name not in tensors:
      self.missing.append(name)
      return None
    found = tensors[name]
    if shape is not None and found.shape != tuple(shape):
      self.ill_shaped.append(f"{name} has {found.shape}, not {tuple(shape)}")
      return None
    return found

  def close(self, source: str) -> None:
    """Raises `ValueError` if anything was wrong."""
    parts = {
      "missing": self.missing,
      "ill-shaped": self.ill_shaped,
      "extra": self.extra,
    }
    listed = [f"{k}: {', '.join(sorted(v))}" for k, v in parts.items() if v]
    if listed:
      raise ValueError(f"{source}: {'; '.join(listed)}.")


def detect(names: Iterable[str], *, source: str = "tensors") -> str:
  """The format of tensors by their names; errors call them `source`.

  Raises:
    ValueError: of no format that is known; some names are shown.
  """
  names = sorted(names)
  for name, known in vit_formats.FORMATS.items():
    if any(re.search(known.sign, n) for n in names):
      return name
  shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
  raise ValueError(
    f"{source}: of no format known ({', '.join(FORMATS)}) by the names "
    f"{shown or 'of no tensors'}."
  )


def vit_settings(format: str) -> dict[str, Any]:
  """What `vit.ViT` must have for weights of a format: activation, norm_eps.

  Raises:
    ValueError: not one of `FORMATS`.
  """
  known = checks.lookup("format", format, vit_formats.FORMATS)
  return {"activation": known.activation, "norm_eps": known.norm_eps}


def _most(values: Iterable[int]) -> int:
  """The most frequent one, of equals the first; 0 if there is none."""
  counted = collections.Counter(values).most_common(1)
  return counted[0][0] if counted else 0


def _sizes(
  tensors: Tensors, known: vit_formats.Format, patch_size, num_heads
) -> vit_formats.Sizes:
  """What most tensors agree upon; where there is none, any number will do."""
  tensors = {n: x for n, x in tensors.items() if not re.match(known.other, n)}
  ending = lambda end: [x for n, x in tensors.items() if n.endswith(end)]
  width = _most(x.shape[-1] for x in ending(known.norm) if x.ndim)
  hidden = _most(x.shape[-1] for x in ending(known.up) if x.ndim)
  blocks = {n: re.match(known.block, n) for n in tensors}
  blocks = {n: match for n, match in blocks.items() if match}
  if known.stacked:
    layers = _most(len(tensors[n]) for n in blocks if tensors[n].ndim)
  else:
    layers = max((int(match[1]) + 1 for match in blocks.values()), default=0)
  heads = num_heads
  if known.is_jax:  # biases [(N,) H, D]
    heads = _most(x.shape[-2] for x in ending("/query/bias") if x.ndim > 1)
    if heads and num_heads not in (None, heads):
      checks.refuse("num_heads", num_heads, f"{heads}, that of the file")
  elif width and (num_heads is None or width % num_heads):
    allowed = f"a divisor of the width {width}; these files do not tell it"
    checks.refuse("num_heads", num_heads, allowed)
  kernel = tensors.get(known.kernel)
  patch, channels = 0, 0
  if kernel is not None and kernel.ndim == 4:
    patch, channels = (kernel.shape[i] for i in known.kernel_axes)
  return vit_formats.Sizes(
    patch_size or patch, channels, width, layers, heads or 1, hidden
  )


def _grid(image_size, patch_size: int) -> tuple[int, int] | None:
  """Rows and columns of patches."""
  if image_size is None or not patch_size:
    return None
  pair = vit.sides(image_size)
  for side in pair:
    checks.divisible("image_size", side, "patch_size", patch_size)
  return pair[0] // patch_size, pair[1] // patch_size


def _table_of(num: int, with_cls: bool, grid):
  """Rows in front of the patches', and the grid of these; or None.

  A file may leave out the row of [cls]. Squares go first; another grid is known
  by the images alone.
  """
  fronts = (1, 0) if with_cls else (0,)
  for front in fronts:
    if vit_positions.square(num - front):
      return front, vit_positions.square(num - front)
  for front in fronts:
    if grid is not None and grid[0] * grid[1] == num - front:
      return front, grid
  return None


def _positions(report, tensors, known, sizes, grid, way):
  """`(positions, their grid)`, a row for [cls] among them; or of None."""
  name = next((n for n in known.positions if n in tensors), known.positions[0])
  table, with_cls = report.take(tensors, name), known.cls in tensors
  if table is None:
    return None, None
  whole = table.ndim == 3 and table.shape[::2] == (1, sizes.width)
  found = _table_of(table.shape[1], with_cls, grid) if whole else None
  if found is None:
    wanted = f"(1, {'1 + ' if with_cls else ''}L, {sizes.width})"
    report.ill_shaped.append(
      f"{name} has {table.shape}, not {wanted} with L patches of a square"
    )
    return None, None
  front, old = found
  if front < with_cls:
    table = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
  if grid is None:
    return table, old
  made = vit_positions.resize(
    table, grid, way=way, num_prefix=int(with_cls), old_grid=old
  )
  return made, grid


def _dense_and_norms(report, tensors, known, sizes) -> dict[str, np.ndarray]:
  """Parameters by path, but [cls] and positions."""
  out, shapes = {}, vit_formats.our_shapes(sizes)
  for each in known.tensors(sizes):
    found = report.take(tensors, each.name, each.shape)
    if found is not None:
      parts = zip(each.paths, each.read(found))
      out |= {path: x.reshape(shapes[path]) for path, x in parts}
  return out


def _head(report, tensors, known, width):
  """A head of one layer, or None if it is not whole."""
  names = known.head
  bias = report.take(tensors, names[1])
  num = 0 if bias is None else bias.size
  if bias is not None:
    bias = report.take(tensors, names[1], (num,))
  shape = (width, num) if known.is_jax else (num, width)
  kernel = report.take(tensors, names[0], shape)
  if kernel is None or bias is None:
    return None
  kernel = kernel if known.is_jax else kernel.T
  return {"kernel": np.ascontiguousarray(kernel), "bias": bias}


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *folders, name = path.split("/")
    at = tree
    for folder in folders:
      at = at.setdefault(folder, {})
    at[name] = np.ascontiguousarray(leaf)
  return tree


def from_tensors(
  tensors: Tensors,
  *,
  format: str | None = None,
  image_size: int | tuple[int, int] | None = None,
  patch_size: int | None = None,
  num_heads: int | None = None,
  drop_head: bool = True,
  resize: str = "official",
  source: str = "tensors",
) -> LoadedViT:
  """Parameters of `vit.ViT` from the tensors of a file; see `load_vit`.

  Args:
    tensors: arrays of floats by the names that a file has.
    source: what an error calls them.
    format, image_size, patch_size, num_heads, drop_head, resize: as there.
  """
  checks.one_of("resize", resize, vit_positions.WAYS)
  checks.boolean("drop_head", drop_head)
  for name, value in (("patch_size", patch_size), ("num_heads", num_heads)):
    if value is not None:
      checks.positive_int(name, value)
  if format is None:
    format = detect(tensors, source=source)
  known = checks.lookup("format", format, vit_formats.FORMATS)
  tensors = vit_formats.without_prefix(tensors, known)
  tensors = {n: np.asarray(x, np.float32) for n, x in tensors.items()}
  sizes = _sizes(tensors, known, patch_size, num_heads)
  report = _Report()
  flat = _dense_and_norms(report, tensors, known, sizes)
  has_cls = known.cls in tensors
  if has_cls:
    flat["cls"] = report.take(tensors, known.cls, (1, 1, sizes.width))
  table, grid = _positions(
    report, tensors, known, sizes, _grid(image_size, sizes.patch_size), resize
  )
  flat["pos_embedding"] = table
  head = None if drop_head else _head(report, tensors, known, sizes.width)
  other = lambda n: drop_head and re.match(known.other, n)
  report.extra = [n for n in tensors if n not in report.seen and not other(n)]
  report.close(f"{source} of the format {format!r}")
  settings = sizes._asdict() | {
    "use_cls": has_cls,
    "image_size": tuple(side * sizes.patch_size for side in grid),
    **vit_settings(format),
  }
  del settings["channels"]
  return LoadedViT(_nested(flat), settings, head)


def load_vit(
  path: str | os.PathLike,
  *,
  format: str | None = None,
  image_size: int | tuple[int, int] | None = None,
  patch_size: int | None = None,
  num_heads: int | None = None,
  drop_head: bool = True,
  resize: str = "official",
) -> LoadedViT:
  """A vision transformer from a file that another program wrote.

  >>> loaded = load_vit("ViT-B_16.npz", image_size=224)  # doctest: +SKIP
  >>> model = vit.ViT(**loaded.settings)  # doctest: +SKIP
  >>> tokens = model.apply({"params": loaded.params}, x)  # doctest: +SKIP

  float16 and bfloat16 become float32. Rows of positions for [cls] that a file
  lacks are 0: there, positions are added before [cls] stands in front.

  Args:
    path: `.npz` or `.safetensors`.
    format: of `FORMATS`; None finds it out.
    image_size: side, or height and width, of the images to come, for which
      position embeddings are resized; None: those the file is for, squares.
    patch_size: None takes the file's; another one is an error.
    num_heads: H; needed for timm and Hugging Face, whose files do not tell it.
    drop_head: whether the head, and what stands between it and the tokens (a
      layer `pre_logits`, attention pooling `MAPHead_0`, a `pooler`), is left
      out. With False the file must have a head, of one layer.
    resize: of `vit_positions.WAYS`.

  Returns:
    Parameters, settings of the module they are for, and the head.

  Raises:
    ValueError: a format that is not known; wrong arguments; tensors that are
      missing, ill-shaped or extra, all of them listed.
    Damaged: the file is not whole.
    OSError: it is not there or cannot be read.
  """
  keep = lambda name: not _TRAINING_STATE.match(name)
  return from_tensors(
    tensor_files.read(path, keep=keep),
    format=format,
    image_size=image_size,
    patch_size=patch_size,
    num_heads=num_heads,
    drop_head=drop_head,
    resize=resize,
    source=str(path),
  )


def _our_sizes(flat: Tensors, num_heads: int) -> vit_formats.Sizes:
  """Sizes of our parameters by path, as most of them have it."""
  ending = lambda end: [x for n, x in flat.items() if n.endswith(end)]
  width = _most(x.shape[-1] for x in ending("norm/scale") if x.ndim)
  checks.divisible("width", width, "num_heads", num_heads)
  hidden = _most(x.shape[-1] for x in ending("/up/bias") if x.ndim)
  blocks = [re.match(r"encoder/block_(\d+)/", n) for n in flat]
  layers = max((int(m[1]) + 1 for m in blocks if m), default=0)
  kernel = flat.get("patches/projection/kernel")
  patch, channels = (
    (0, 0) if kernel is None else (kernel.shape[0], kernel.shape[-2])
  )
  return vit_formats.Sizes(patch, channels, width, layers, num_heads, hidden)


def to_tensors(
  params: Mapping[str, Any],
  *,
  num_heads: int,
  head: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Parameters of `vit.ViT` by the names of the original release.

  Args:
    params: unrolled or, of `scan=True`, stacked.
    num_heads: H.
    head: `kernel` `[E, classes]` and `bias` `[classes]`.

  Raises:
    ValueError: missing, ill-shaped or extra parameters, all listed.
  """
  encoder = params.get("encoder", {})
  if "blocks" in encoder:
    params = {**params, "encoder": transformer.unstack_blocks(encoder)}
  known = vit_formats.FORMATS["original"]
  flat = {
    n: np.asarray(x, np.float32) for n, x in trees.flatten(params).items()
  }
  sizes = _our_sizes(flat, num_heads)
  report, out = _Report(), {}
  shapes = vit_formats.our_shapes(sizes)
  for each in known.tensors(sizes):
    found = report.take(flat, each.paths[0], shapes[each.paths[0]])
    if found is not None:
      out[each.name] = found.reshape(each.shape)
  if "cls" in flat:
    out[known.cls] = report.take(flat, "cls", (1, 1, sizes.width))
  out[known.positions[0]] = report.take(flat, "pos_embedding")
  report.extra = [n for n in flat if n not in report.seen]
  report.close("params of a ViT")
  if head is not None:
    out |= {
      name: np.asarray(head[part], np.float32)
      for name, part in zip(known.head, ("kernel", "bias"))
    }
  return out


def save_vit_npz(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  *,
  num_heads: int,
  head: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes parameters as the original release has them, at one stroke.

  Other programs read such a file as a ViT with the tanh form of GELU and norms
  that add 1e-6; it has no place to say otherwise.

  Args:
    path: the `.npz` file.
    params, num_heads, head: as in `to_tensors`.

  Returns:
    The path.

  Raises:
    ValueError: as `to_tensors`.
  """
  tensors = to_tensors(params, num_heads=num_heads, head=head)
  return files.write_arrays(path, **tensors)
