"""The models: T5's encoder-decoder, and a decoder alone, of shared blocks.

The blog says: encoder-decoder, about 0.5B parameters. The blocks are our
choice, those of T5 1.1 (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020,
arXiv 2002.05202): RMS norms in front, no biases, gated GELU, relative
positions, embeddings of variance 1 shared with the output, which is multiplied
by size^-0.5. Scores of the attention are divided by the root of the size of a
head, where T5 has smaller queries instead.
"""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from locojax.core import checks
from locojax.nn import lm, seq2seq

# vocabulary, size, feed-forward size, heads, layers of encoder and decoder.
PRESETS: dict[str, dict[str, int]] = {
  name: dict(
    zip(
      (
        *("vocab_size", "model_size", "hidden_size", "num_heads"),
        *("encoder_layers", "decoder_layers"),
      ),
      sizes,
    )
  )
  for name, sizes in {
    "cpu_tiny": (4096, 128, 384, 4, 4, 2),
    "gpu_67m": (16384, 512, 1536, 8, 12, 4),
    "gpu_167m": (32768, 768, 2048, 12, 12, 6),
    "paper_0p5b": (32768, 1024, 2816, 16, 28, 6),
    "t5_1_1_large": (32128, 1024, 2816, 16, 24, 24),
  }.items()
}
KINDS = ("encoder_decoder", "decoder")


def sizes(name: str, **changes: int) -> dict[str, int]:
  """The sizes of a preset, some of them changed.

  Raises:
    ValueError: an unknown preset, or a size that is none or unknown.
  """
  found = dict(checks.lookup("preset", name, PRESETS))
  for key, value in changes.items():
    checks.one_of("setting of preset", key, found)
    found[key] = checks.positive_int(key, value)
  return found


def num_parameters(
  *,
  vocab_size: int,
  model_size: int,
  hidden_size: int,
  num_heads: int,
  encoder_layers: int,
  decoder_layers: int,
  tied: bool = True,
  num_buckets: int = 32,
) -> int:
  """Parameters of the encoder-decoder, whose heads make up the model's size.

  Args:
    vocab_size, model_size, hidden_size, num_heads, encoder_layers,
      decoder_layers: as in `PRESETS`.
    tied: whether the output is the embedding.
    num_buckets: of relative positions.

  >>> num_parameters(**PRESETS["cpu_tiny"])
  1935616
  """
  d, square = model_size, model_size**2
  block = 3 * d * hidden_size
  encoder = encoder_layers * (4 * square + block + 2 * d)
  decoder = decoder_layers * (8 * square + block + 3 * d)
  shared = 2 * d + 2 * num_buckets * num_heads
  return encoder + decoder + shared + (1 if tied else 2) * vocab_size * d


def encoder_decoder(
  name: str,
  *,
  max_inputs: int,
  max_targets: int,
  tied: bool = True,
  scan: bool = False,
  remat: str = "none",
  dtype: Any = None,
  **changes: int,
) -> seq2seq.Seq2SeqLM:
  """The model of a preset.

  Args:
    name: one of `PRESETS`.
    max_inputs: tokens of the input, at most.
    max_targets: tokens of the output, at most, with one in front.
    tied: whether the output is the embedding.
    scan, remat, dtype: as of `nn.seq2seq.Seq2SeqLM`.
    **changes: sizes other than the preset's.

  Returns:
    The module. Its parameters are counted by `num_parameters`.

  Raises:
    ValueError: an unknown preset or size.
  """
  found = sizes(name, **changes)
  checks.divisible(
    "model_size", found["model_size"], "num_heads", found["num_heads"]
  )
  return seq2seq.Seq2SeqLM(
    **found,
    max_inputs=max_inputs,
    max_len=max_targets + 1,
    activation=nn.gelu,
    gated=True,
    norm="rms",
    use_bias=False,
    positions="relative",
    tie_embedding=tied,
    logit_scale=found["model_size"] ** -0.5 if tied else 1.0,
    embedding_init=nn.initializers.normal(1.0),
    scan=scan,
    remat=remat,
    dtype=dtype,
  )


def decoder_only(
  name: str,
  *,
  max_inputs: int,
  max_targets: int,
  scan: bool = False,
  remat: str = "none",
  dtype: Any = None,
  **changes: int,
) -> lm.DecoderLM:
  """A decoder of as many layers as both stacks have, rotary positions.

  Arguments and errors are those of `encoder_decoder`; it reads prompts of
  `examples.fim_tokens`.
  """
  found = sizes(name, **changes)
  layers = found.pop("encoder_layers") + found.pop("decoder_layers")
  checks.divisible(
    "model_size", found["model_size"], "num_heads", found["num_heads"]
  )
  return lm.DecoderLM(
    **found,
    num_layers=layers,
    max_len=max_inputs + max_targets + 1,
    activation=nn.gelu,
    gated=True,
    norm="rms",
    use_bias=False,
    positions="rotary",
    tie_embedding=True,
    logit_scale=found["model_size"] ** -0.5,
    embedding_init=nn.initializers.normal(1.0),
    scan=scan,
    remat=remat,
    dtype=dtype,
  )
