"""A training step of L2P in PyTorch, as the port of JH-LEE-KR has it.

  python experiments/l2p/bench_peer.py --model vit_small_patch16_224 \\
    --image-size 224 --batch 8 --threads 2

For `experiments.l2p.bench` alone, which starts it with a Python that has torch
and timm, and asks it for steps (`experiments/common/peers.py`). What the port
does in a step:

  * the query is the [cls] row of a second, un-prompted model, without gradients
    (its head is computed as well);
  * the examples of a batch vote on the prompts of all of them; prompts stand
    between [cls] and the patches, and have positions;
  * cross-entropy among the task's classes less 0.1 times the similarity;
  * gradients of prompts, keys, head and positions alone (the port does not
    freeze these), clipped together, Adam;
  * loss, top-1 and top-5 accuracy are read after every step.

Its attention is written out; `--fused` takes timm's own, with torch's
`scaled_dot_product_attention`. Weights are drawn: they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

import timm
import torch
from timm import layers
from timm import utils as timm_utils
from torch import nn
from torch.nn import functional

SEED = 0


def unit_rows(x: torch.Tensor) -> torch.Tensor:
  square = torch.sum(x**2, dim=1, keepdim=True)
  return x * torch.rsqrt(torch.clamp(square, min=1e-12))


class Pool(nn.Module):
  """Prompts and keys; all examples of a batch get those with most votes."""

  def __init__(self, size: int, length: int, top_k: int, width: int):
    super().__init__()
    self.top_k = top_k
    self.prompt = nn.Parameter(torch.rand(size, length, width))
    self.key = nn.Parameter(torch.rand(size, width))

  def vote(self, similarity: torch.Tensor) -> torch.Tensor:
    """`[N]` ids."""
    ids, counts = torch.unique(
      torch.topk(similarity, self.top_k, dim=1)[1], return_counts=True
    )
    return ids[torch.topk(counts, self.top_k)[1]]

  def forward(self, query: torch.Tensor):
    """Prompts `[B, N P, E]`, and the mean similarity."""
    keys, query = unit_rows(self.key), unit_rows(query)
    chosen = self.vote(query @ keys.t()).expand(len(query), -1)
    prompts = self.prompt[chosen].flatten(1, 2)
    similarity = (keys[chosen] * query[:, None]).sum() / len(query)
    return prompts, similarity


class Prompted(nn.Module):
  """A vision transformer of timm with a pool in front of its patches."""

  def __init__(self, net: nn.Module, args: argparse.Namespace):
    super().__init__()
    self.net, width = net, net.embed_dim
    self.pool = Pool(args.pool_size, args.length, args.top_k, width)
    self.num_prompts = args.length * args.top_k
    rows = 1 + self.num_prompts + net.patch_embed.num_patches
    self.positions = nn.Parameter(0.02 * torch.randn(1, rows, width))
    self.head = nn.Linear(width, args.classes)
    for parameter in net.parameters():
      parameter.requires_grad = False

  def forward(self, images: torch.Tensor, query: torch.Tensor):
    """Logits and the mean similarity."""
    patches = self.net.patch_embed(images)
    prompts, similarity = self.pool(query)
    cls = self.net.cls_token.expand(len(images), -1, -1)
    x = torch.cat([cls, prompts, patches], dim=1) + self.positions
    x = self.net.norm(self.net.blocks(x))
    return self.head(x[:, 1 : 1 + self.num_prompts].mean(dim=1)), similarity


class Trainer:
  """A step of the port on one batch."""

  def __init__(self, args: argparse.Namespace):
    torch.manual_seed(SEED)
    make = lambda: timm.create_model(
      args.model, img_size=args.image_size, num_classes=args.classes
    )
    self.query_net = make().eval().requires_grad_(False)
    self.model = Prompted(make(), args).train()
    trained = [p for p in self.model.parameters() if p.requires_grad]
    self.optimizer = torch.optim.Adam(trained, lr=0.03 * args.batch / 256)
    side = args.image_size
    self.images = torch.rand(args.batch, 3, side, side)
    self.labels = torch.randint(args.task_classes, (args.batch,))
    self.outside = torch.arange(args.task_classes, args.classes)

  def query(self) -> torch.Tensor:
    with torch.no_grad():
      tokens = self.query_net.forward_features(self.images)
      self.query_net.forward_head(tokens)
    return tokens[:, 0]

  def step(self) -> float:
    logits, similarity = self.model(self.images, self.query())
    logits = logits.index_fill(1, self.outside, -math.inf)
    loss = functional.cross_entropy(logits, self.labels) - 0.1 * similarity
    top1, top5 = timm_utils.accuracy(logits, self.labels, topk=(1, 5))
    if not math.isfinite(loss.item()):
      raise ValueError(f"the loss is {loss.item()}.")
    self.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
    self.optimizer.step()
    top1.item(), top5.item()
    return loss.item()


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", required=True, help="of timm")
  parser.add_argument("--image-size", type=int, default=224)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--threads", type=int, required=True)
  parser.add_argument("--pool-size", type=int, default=10)
  parser.add_argument("--length", type=int, default=5)
  parser.add_argument("--top-k", type=int, default=5)
  parser.add_argument("--classes", type=int, default=100)
  parser.add_argument("--task-classes", type=int, default=10)
  parser.add_argument("--fused", action="store_true")
  args = parser.parse_args(argv)
  torch.set_num_threads(args.threads)
  layers.set_fused_attn(args.fused)
  trainer = Trainer(args)
  trained = [p for p in trainer.model.parameters() if p.requires_grad]
  told = {
    "torch": torch.__version__,
    "timm": timm.__version__,
    "threads": torch.get_num_threads(),
    "trained": sum(p.numel() for p in trained),
    "fused": trainer.model.net.blocks[0].attn.fused_attn,
  }
  print(json.dumps(told), flush=True)
  for line in sys.stdin:
    if line.strip() != "step":
      raise ValueError(f"{line!r} is not allowed: it must be step.")
    print(json.dumps(trainer.step()), flush=True)


if __name__ == "__main__":
  main(sys.argv[1:])
