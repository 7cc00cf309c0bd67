"""Greedy decoding by Hugging Face's `generate`, with its cache.

  python experiments/pix2seq/bench_decode_peer.py --batch 4 --side 40 \\
    --objects 100 --layers 6 --width 512 --heads 16 --vocab 3000 --threads 2

For `experiments.pix2seq.bench_decode` alone, which starts it with a Python that
has torch and transformers, and asks it for steps (`experiments/common/
peers.py`). The model is a BART whose decoder has the sizes given; what its
encoder would give is given. `--eager` writes attention out. Weights are drawn:
they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
import transformers
from transformers import modeling_outputs

SEED = 0


class Decoder:
  """A model and an encoded batch."""

  def __init__(self, args: argparse.Namespace):
    torch.manual_seed(SEED)
    self.num = 5 * args.objects
    config = transformers.BartConfig(
      vocab_size=args.vocab,
      d_model=args.width,
      encoder_layers=1,
      decoder_layers=args.layers,
      encoder_attention_heads=args.heads,
      decoder_attention_heads=args.heads,
      encoder_ffn_dim=4 * args.width,
      decoder_ffn_dim=4 * args.width,
      max_position_embeddings=max(512, self.num),
      bos_token_id=1,
      pad_token_id=0,
      eos_token_id=None,
      forced_eos_token_id=None,
      decoder_start_token_id=10,
    )
    config._attn_implementation = "eager" if args.eager else "sdpa"
    self.model = transformers.BartForConditionalGeneration(config).eval()
    self.attention = self.model.config._attn_implementation
    self.memory = torch.randn(args.batch, args.side**2, args.width)
    self.prompt = torch.full((args.batch, 1), 10)

  @torch.inference_mode()
  def run(self) -> torch.Tensor:
    """Tokens `[B, T]`."""
    encoded = modeling_outputs.BaseModelOutput(last_hidden_state=self.memory)
    out = self.model.generate(
      encoder_outputs=encoded,
      decoder_input_ids=self.prompt,
      max_new_tokens=self.num,
      min_new_tokens=self.num,
      do_sample=False,
      num_beams=1,
      use_cache=True,
    )
    if out.shape[1] != 1 + self.num:
      raise ValueError(f"{out.shape[1] - 1} tokens, not {self.num}.")
    return out[:, 1:]


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in ("batch", "side", "objects", "layers", "width", "heads", "vocab"):
    parser.add_argument(f"--{name}", type=int, required=True)
  parser.add_argument("--threads", type=int, required=True)
  parser.add_argument("--eager", action="store_true")
  args = parser.parse_args(argv)
  torch.set_num_threads(args.threads)
  decoder = Decoder(args)
  told = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "threads": torch.get_num_threads(),
    "attention": decoder.attention,
  }
  print(json.dumps(told), flush=True)
  for line in sys.stdin:
    if line.strip() != "step":
      raise ValueError(f"{line!r} is not allowed: it must be step.")
    print(json.dumps(int(decoder.run()[0, -1])), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
