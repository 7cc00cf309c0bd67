"""Generation of token sequences by any step function.

A model gives a step, and a cache and logits after the prompts; see
`locojax.nn.lm`.

    cache, kept, logits = lm.prefill(model, params, prompts, valid=valid)
    step = lm.next_token(model, params, kept)
    out = decode.generate(
      step, cache, logits, max_new_tokens=64, num_samples=8, key=key,
      sampler=decode.Sampler(temperature=0.6, top_p=0.95), stop_tokens=(1,))
    best = decode.beam_search(
      step, cache, logits, beam_size=4, max_new_tokens=64, stop_tokens=(1,))

A step of your own with linen layers gains on a CPU from `nn.few_rows.in_loop()`
around its `apply`, as that of `next_token` does.
"""

from locojax.decode import cache
from locojax.decode.beam import PENALTIES, Beams, beam_search, length_penalty
from locojax.decode.constraints import (
  AllOf,
  Automaton,
  ByPosition,
  Constraint,
  TextPrefix,
  Trie,
  all_of,
  automaton,
  by_position,
  never,
  not_first,
  stop_sequences,
  text_prefix,
  trie,
  with_prefixes,
)
from locojax.decode.generation import Generated, Keep, Step, generate
from locojax.decode.prompts import SIDES, bucket_length, pad_prompts
from locojax.decode.sample import (
  GREEDY,
  TOP_P_RULES,
  Choice,
  Sampler,
  choose,
  greedy,
  keep_min_p,
  keep_top_k,
  keep_top_p,
  log_softmax,
  scale,
)
from locojax.decode.tree import tree_search

__all__ = [
  "AllOf",
  "Automaton",
  "Beams",
  "ByPosition",
  "Choice",
  "Constraint",
  "GREEDY",
  "Generated",
  "Keep",
  "PENALTIES",
  "SIDES",
  "Sampler",
  "Step",
  "TOP_P_RULES",
  "TextPrefix",
  "Trie",
  "all_of",
  "automaton",
  "beam_search",
  "bucket_length",
  "by_position",
  "cache",
  "choose",
  "generate",
  "greedy",
  "keep_min_p",
  "keep_top_k",
  "keep_top_p",
  "length_penalty",
  "log_softmax",
  "never",
  "not_first",
  "pad_prompts",
  "scale",
  "stop_sequences",
  "text_prefix",
  "tree_search",
  "trie",
  "with_prefixes",
]
