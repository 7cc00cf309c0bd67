"""Beam search by Hugging Face's `generate`, with its cache.

  python experiments/completion/bench_beam_peer.py --inputs 128 --tokens 24 \\
    --beams 4 --encoder 4 --decoder 2 --width 128 --hidden 384 --heads 4 \\
    --vocab 4096 --threads 2

For `experiments.completion.bench_beam` alone, which starts it with a Python
that has torch and transformers, and asks it for steps (`experiments/common/
peers.py`). The model is a T5 1.1 of the sizes given; what its encoder would
give is given. Weights are drawn: they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
import transformers
from transformers import modeling_outputs

SEED = 0
SIZES = (
  *("inputs", "tokens", "beams", "encoder", "decoder", "width", "hidden"),
  *("heads", "vocab", "threads"),
)


class Decoder:
  """A model and an encoded prompt."""

  def __init__(self, args: argparse.Namespace):
    torch.manual_seed(SEED)
    self.num, self.beams = args.tokens, args.beams
    config = transformers.T5Config(
      vocab_size=args.vocab,
      d_model=args.width,
      d_kv=args.width // args.heads,
      d_ff=args.hidden,
      num_layers=args.encoder,
      num_decoder_layers=args.decoder,
      num_heads=args.heads,
      feed_forward_proj="gated-gelu",
      dropout_rate=0.0,
      pad_token_id=0,
      eos_token_id=1,
      decoder_start_token_id=0,
    )
    self.model = transformers.T5ForConditionalGeneration(config).eval()
    self.memory = torch.randn(1, args.inputs, args.width)

  @torch.inference_mode()
  def run(self) -> torch.Tensor:
    """Tokens `[beams, T]`."""
    encoded = modeling_outputs.BaseModelOutput(last_hidden_state=self.memory)
    out = self.model.generate(
      encoder_outputs=encoded,
      max_new_tokens=self.num,
      min_new_tokens=self.num,
      do_sample=False,
      num_beams=self.beams,
      num_return_sequences=self.beams,
      length_penalty=0.6,
      use_cache=True,
    )
    if out.shape[1] != 1 + self.num:
      raise ValueError(f"{out.shape[1] - 1} tokens, not {self.num}.")
    return out[:, 1:]


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name in SIZES:
    parser.add_argument(f"--{name}", type=int, required=True)
  args = parser.parse_args(argv)
  torch.set_num_threads(args.threads)
  decoder = Decoder(args)
  told = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "threads": torch.get_num_threads(),
  }
  print(json.dumps(told), flush=True)
  for line in sys.stdin:
    if line.strip() != "step":
      raise ValueError(f"{line!r} is not allowed: it must be step.")
    print(json.dumps(int(decoder.run()[0, -1])), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
