"""Samples of one prompt by Hugging Face's `generate`, with its cache.

  python experiments/minerva/bench_sampling_peer.py --layers 8 --width 512 \\
    --heads 8 --head_dim 64 --hidden 2048 --vocab 8000 --prompt 512 \\
    --tokens 128 --samples 64 --threads 2

For `experiments.minerva.bench_sampling` alone, which starts it with a Python
that has torch and transformers, and asks it for steps (`experiments/common/
peers.py`). The model is a Llama of one head of keys and values. `--shared`
reads the prompt once and repeats its cache. Weights are drawn: they do not
change the time.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
import transformers

SEED = 0
_SIZES = (
  *("layers", "width", "heads", "head_dim", "hidden", "vocab"),
  *("prompt", "tokens", "samples", "threads"),
)


class Sampler:
  """A model and a prompt."""

  def __init__(self, args: argparse.Namespace):
    torch.manual_seed(SEED)
    self.args = args
    config = transformers.LlamaConfig(
      vocab_size=args.vocab,
      hidden_size=args.width,
      intermediate_size=args.hidden,
      num_hidden_layers=args.layers,
      num_attention_heads=args.heads,
      num_key_value_heads=1,
      head_dim=args.head_dim,
      max_position_embeddings=args.prompt + args.tokens,
      tie_word_embeddings=True,
      bos_token_id=None,
      eos_token_id=None,
      pad_token_id=0,
    )
    self.model = transformers.LlamaForCausalLM(config).eval()
    self.attention = self.model.config._attn_implementation
    self.prompt = torch.randint(1, args.vocab, (1, args.prompt))

  def kernels(self) -> int:
    """Parameters but for those of norms."""
    return sum(p.numel() for p in self.model.parameters() if p.ndim > 1)

  def _cache(self):
    """Keys and values of the prompt but for its last token, repeated."""
    cache = transformers.DynamicCache(config=self.model.config)
    self.model(self.prompt[:, :-1], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(self.args.samples)
    return cache

  @torch.inference_mode()
  def run(self) -> torch.Tensor:
    """Tokens `[samples, tokens]`."""
    shared = {}
    prompt, repeats = self.prompt, self.args.samples
    if self.args.shared:
      shared = {"past_key_values": self._cache()}
      prompt, repeats = prompt.repeat(repeats, 1), 1
    out = self.model.generate(
      prompt,
      attention_mask=torch.ones_like(prompt),
      do_sample=True,
      temperature=0.6,
      top_p=0.95,
      top_k=0,
      num_return_sequences=repeats,
      max_new_tokens=self.args.tokens,
      min_new_tokens=self.args.tokens,
      use_cache=True,
      **shared,
    )
    tokens = out[:, self.args.prompt :]
    if tuple(tokens.shape) != (self.args.samples, self.args.tokens):
      raise ValueError(f"tokens have the shape {tuple(tokens.shape)}.")
    return tokens


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in _SIZES:
    parser.add_argument(f"--{name}", type=int, required=True)
  parser.add_argument("--shared", action="store_true")
  args = parser.parse_args(argv)
  torch.set_num_threads(args.threads)
  made = Sampler(args)
  told = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "threads": torch.get_num_threads(),
    "attention": made.attention,
    "kernels": made.kernels(),
  }
  print(json.dumps(told), flush=True)
  for line in sys.stdin:
    if line.strip() != "step":
      raise ValueError(f"{line!r} is not allowed: it must be step.")
    print(json.dumps(int(made.run()[0, -1])), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
