"""Names and shapes of vision transformers' tensors, ours and other programs'.

Letters: N blocks, P patch, C channels, E width, F feed-forward, H heads, D size
of a head. JAX keeps kernels as [in, out], heads apart; torch as [out, in].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from locojax.nn import vit

Shape = tuple[int, ...]


class Sizes(NamedTuple):
  """What all shapes follow from, but for those of positions and head."""

  patch_size: int
  channels: int
  width: int
  num_layers: int
  num_heads: int
  hidden_size: int


class Tensor(NamedTuple):
  """A tensor of a file, and what becomes of it.

  Attributes:
    name, shape: in the file.
    paths: of the parameters that it holds.
    read: gives an array for each of `paths`, which need only be reshaped.
  """

  name: str
  shape: Shape
  paths: tuple[str, ...]
  read: Callable[[np.ndarray], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Format:
  """Names of a format.

  Attributes:
    sign: regular expression that is found in names of this format, and of none
      of those below it.
    block: of names of blocks' tensors, the number being its group.
    prefixes: what may stand in front of all names.
    tensors: all tensors of these sizes but [cls], positions and head.
    kernel, kernel_axes: the patches' kernel, and its axes of P and C.
    cls, positions: names, of `positions` the first one that is there.
    norm, up: endings of names whose last axes are E and F.
    other: of names, by their beginning, that are not on the way to the tokens.
    head: kernel and bias of a head of one layer.
    is_jax: whether kernels are [in, out], heads apart.
    stacked: whether the tensors of all blocks are one.
    activation, norm_eps: of the model.
  """

  sign: str
  block: str
  prefixes: tuple[str, ...]
  tensors: Callable[[Sizes], list[Tensor]]
  kernel: str
  kernel_axes: tuple[int, int]
  cls: str
  positions: tuple[str, ...]
  norm: str
  up: str
  other: str
  head: tuple[str, str]
  is_jax: bool = False
  stacked: bool = False
  activation: Callable = vit.TANH_GELU
  norm_eps: float = 1e-6


def without_prefix(
  tensors: Mapping[str, np.ndarray], known: Format
) -> dict[str, np.ndarray]:
  """The same tensors, a prefix of the format taken from names that have it."""
  out = dict(tensors)
  for prefix in known.prefixes:
    out = {n.removeprefix(prefix): x for n, x in out.items()}
  return out


_DENSE = ("query", "key", "value", "out")


def _block_shapes(sizes: Sizes) -> dict[str, Shape]:
  """Parameters of a block of ours."""
  width, hidden = sizes.width, sizes.hidden_size
  kernels = {f"attention/{n}": (width, width) for n in _DENSE}
  kernels |= {
    "feed_forward/up": (width, hidden),
    "feed_forward/down": (hidden, width),
  }
  out = {f"{n}/kernel": shape for n, shape in kernels.items()}
  out |= {f"{n}/bias": shape[1:] for n, shape in kernels.items()}
  for norm in ("attention_norm", "feed_forward_norm"):
    out |= {f"{norm}/scale": (width,), f"{norm}/bias": (width,)}
  return out


def our_shapes(sizes: Sizes) -> dict[str, Shape]:
  """Shapes of `vit.ViT`'s parameters by path, but [cls] and positions."""
  patch, channels, width = sizes[:3]
  out = {
    "patches/projection/kernel": (patch, patch, channels, width),
    "patches/projection/bias": (width,),
    "encoder/norm/scale": (width,),
    "encoder/norm/bias": (width,),
  }
  for i in range(sizes.num_layers):
    block = _block_shapes(sizes).items()
    out |= {f"encoder/block_{i}/{path}": shape for path, shape in block}
  return out


def _whole(x: np.ndarray) -> tuple[np.ndarray]:
  return (x,)


def _transposed(x: np.ndarray) -> tuple[np.ndarray]:
  return (x.T,)


def _thirds(x: np.ndarray) -> list[np.ndarray]:
  return [y.T for y in np.split(x, 3)]


def _from_oihw(x: np.ndarray) -> tuple[np.ndarray]:
  return (x.transpose(2, 3, 1, 0),)


def _jax_block(sizes: Sizes, names: Mapping[str, str]) -> list[Tensor]:
  """Tensors of a block, named as the modules of ours are by `names`."""
  heads, width = sizes.num_heads, sizes.width
  split = (heads, width // heads)
  own = {
    **{f"attention/{n}/kernel": (width, *split) for n in _DENSE[:3]},
    **{f"attention/{n}/bias": split for n in _DENSE[:3]},
    "attention/out/kernel": (*split, width),
  }

  def named(path):
    for ours, theirs in names.items():
      if path.startswith(f"{ours}/"):
        return theirs + path.removeprefix(ours)

  return [
    Tensor(named(path), own.get(path, shape), (path,), _whole)
    for path, shape in _block_shapes(sizes).items()
  ]


def _jax(numbers: tuple[int, int, int, int], stacked: bool):
  """Tensors of a JAX format, whose modules have these numbers."""
  before, attention, after, feed_forward = numbers
  names = {
    "attention_norm": f"LayerNorm_{before}",
    "attention": f"MultiHeadDotProductAttention_{attention}",
    "feed_forward_norm": f"LayerNorm_{after}",
    "feed_forward/up": f"MlpBlock_{feed_forward}/Dense_0",
    "feed_forward/down": f"MlpBlock_{feed_forward}/Dense_1",
  }

  def tensors(sizes: Sizes) -> list[Tensor]:
    ours = our_shapes(sizes)
    outer = {
      "embedding": "patches/projection",
      "Transformer/encoder_norm": "encoder/norm",
    }
    out = [
      Tensor(f"{name}/{end}", ours[f"{path}/{end}"], (f"{path}/{end}",), _whole)
      for name, path in outer.items()
      for end in ("scale", "kernel", "bias")
      if f"{path}/{end}" in ours
    ]
    layers = range(sizes.num_layers)
    for each in _jax_block(sizes, names):
      paths = tuple(f"encoder/block_{i}/{each.paths[0]}" for i in layers)
      if stacked:
        name, shape = f"Transformer/encoderblock/{each.name}", each.shape
        out.append(Tensor(name, (len(layers), *shape), paths, iter))
        continue
      out += [
        Tensor(
          f"Transformer/encoderblock_{i}/{each.name}",
          each.shape,
          (path,),
          _whole,
        )
        for i, path in enumerate(paths)
      ]
    return out

  return tensors


def _torch(conv: str, norm: str, block: str, modules: Mapping[str, str]):
  """Tensors of a torch format.

  Args:
    conv, norm, block: names of the patches' layer, the last norm, and a block.
    modules: our modules of a block by the names of theirs; several of ours,
      with commas between them, are held by one of theirs.
  """

  def module(name, paths, ours):
    if "norm" in paths[0]:
      ends, reads = ("scale", "bias"), (_whole, _whole)
    elif len(paths) == 3:
      ends, reads = ("kernel", "bias"), (_thirds, _thirds)
    else:
      first = _from_oihw if name == conv else _transposed
      ends, reads = ("kernel", "bias"), (first, _whole)
    for their_end, end, read in zip(("weight", "bias"), ends, reads):
      full = tuple(f"{path}/{end}" for path in paths)
      shape = ours[full[0]]
      if read is _from_oihw:
        shape = (shape[3], shape[2], *shape[:2])
      elif len(shape) == 2:
        shape = (len(full) * shape[1], shape[0])
      else:
        shape = (len(full) * shape[0],)
      yield Tensor(f"{name}.{their_end}", shape, full, read)

  def tensors(sizes: Sizes) -> list[Tensor]:
    ours = our_shapes(sizes)
    out = [
      *module(conv, ("patches/projection",), ours),
      *module(norm, ("encoder/norm",), ours),
    ]
    for i in range(sizes.num_layers):
      for theirs, joined in modules.items():
        at = f"encoder/block_{i}/"
        paths = tuple(at + path for path in joined.split(","))
        out += module(f"{block}.{i}.{theirs}", paths, ours)
    return out

  return tensors


OLD_POSITIONS = (
  "Transformer/posembed_input/pos_embedding",
  "Transformer/pos_embedding",
)
_JAX_NAMES = {
  "prefixes": ("params/", "opt/target/"),
  "kernel": "embedding/kernel",
  "kernel_axes": (0, 2),
  "cls": "cls",
  "norm": "/scale",
  "up": "/Dense_0/bias",
  "is_jax": True,
  # The last four: attention pooling, before it was a module of its own.
  "other": r"head/|pre_logits/|MAPHead_0/|probe$|LayerNorm_0/|MlpBlock_0/"
  r"|MultiHeadDotProductAttention_0/",
  "head": ("head/kernel", "head/bias"),
}
_BLOCK = r"Transformer/encoderblock_(\d+)/"
_LINEN = (0, 0, 1, 0)
FORMATS = {
  "original": Format(
    sign=r"Transformer/encoderblock_\d+/(LayerNorm_2|MlpBlock_3"
    r"|MultiHeadDotProductAttention_1)/",
    block=_BLOCK,
    tensors=_jax((0, 1, 2, 3), False),
    positions=OLD_POSITIONS,
    **_JAX_NAMES,
  ),
  "big_vision_stacked": Format(
    sign="Transformer/encoderblock/",
    block="Transformer/encoderblock/",
    tensors=_jax(_LINEN, True),
    positions=("pos_embedding", *OLD_POSITIONS),
    stacked=True,
    **_JAX_NAMES,
  ),
  "big_vision": Format(
    sign=r"Transformer/encoderblock_\d+/",
    block=_BLOCK,
    tensors=_jax(_LINEN, False),
    positions=("pos_embedding", *OLD_POSITIONS),
    **_JAX_NAMES,
  ),
  "timm": Format(
    sign=r"^blocks\.\d+\.(norm1|attn)\.",
    block=r"blocks\.(\d+)\.",
    prefixes=(),
    tensors=_torch(
      "patch_embed.proj",
      "norm",
      "blocks",
      {
        "norm1": "attention_norm",
        "attn.qkv": "attention/query,attention/key,attention/value",
        "attn.proj": "attention/out",
        "norm2": "feed_forward_norm",
        "mlp.fc1": "feed_forward/up",
        "mlp.fc2": "feed_forward/down",
      },
    ),
    kernel="patch_embed.proj.weight",
    kernel_axes=(2, 1),
    cls="cls_token",
    positions=("pos_embed",),
    norm="norm1.weight",
    up="mlp.fc1.bias",
    other=r"head\.",
    head=("head.weight", "head.bias"),
    activation=vit.EXACT_GELU,
  ),
  "huggingface": Format(
    sign=r"^(vit\.)?encoder\.layer\.\d+\.layernorm_before\.",
    block=r"encoder\.layer\.(\d+)\.",
    prefixes=("vit.",),
    tensors=_torch(
      "embeddings.patch_embeddings.projection",
      "layernorm",
      "encoder.layer",
      {
        "layernorm_before": "attention_norm",
        "attention.attention.query": "attention/query",
        "attention.attention.key": "attention/key",
        "attention.attention.value": "attention/value",
        "attention.output.dense": "attention/out",
        "layernorm_after": "feed_forward_norm",
        "intermediate.dense": "feed_forward/up",
        "output.dense": "feed_forward/down",
      },
    ),
    kernel="embeddings.patch_embeddings.projection.weight",
    kernel_axes=(2, 1),
    cls="embeddings.cls_token",
    positions=("embeddings.position_embeddings",),
    norm="layernorm_before.weight",
    up="intermediate.dense.bias",
    # Masks and the decoder are of pre-training by masked images.
    other=r"classifier\.|pooler\.|decoder\.|embeddings\.mask_token$",
    head=("classifier.weight", "classifier.bias"),
    activation=vit.EXACT_GELU,
    norm_eps=1e-12,
  ),
}
