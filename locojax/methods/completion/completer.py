"""A trained model as an editor asks it: names, lines, several lines.

    completer = completion.Completer(model, params, tokenizer, max_inputs=256)
    completer.warm_up()
    names = completer.names(prefix, suffix, "python")
    order = completion.rerank(items, [n.text for n in names])
    lines = completer.lines(prefix, suffix, "python")

Texts are padded to a few lengths, and what is forced to a fixed one, so that
after `warm_up` nothing is compiled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from locojax import decode
from locojax.core import checks, types
from locojax.methods.completion import (
  examples,
  languages,
  multi_line,
)
from locojax.methods.completion.examples import Tokenizer
from locojax.nn import lm, seq2seq

SEARCHES = ("beam", "tree")
_FORCED_BYTES = 96  # longer texts are put in front of the cursor instead
_NAME_TOKENS = 8
_CHILDREN = 8  # of a node of a tree search
_REPLACEMENT = "\ufffd"  # of bytes that are no text
_WORD = {
  "typescript": r"[\w$#]+",
  "java": r"[\w$]+",
  "dart": r"[\w$]+",
  "proto": r"[\w.]+",
}


class Suggestion(NamedTuple):
  """What the model would write at the cursor.

  Attributes:
    text: from the cursor on, without a line end.
    log_prob: sum of the log-probabilities of its tokens, the end included.
    num_tokens: how many.
    finished: false if it was cut at the greatest length.
    tokens: without the end; () where a model has none.
  """

  text: str
  log_prob: float
  num_tokens: int
  finished: bool = True
  tokens: tuple[int, ...] = ()

  @property
  def probability(self) -> float:
    """exp of the sum of the log-probabilities."""
    return math.exp(self.log_prob)

  @property
  def confidence(self) -> float:
    """exp of their mean."""
    return math.exp(self.log_prob / max(1, self.num_tokens))


class Name(NamedTuple):
  """An identifier that the model expects, with what of it is typed.

  Attributes:
    text: the whole identifier.
    probability: that it is the next one.
  """

  text: str
  probability: float


class Begun(NamedTuple):
  """A request after the prompt: see `lm.prefill`."""

  cache: types.PyTree
  memory: types.PyTree
  logits: jax.Array


class _Asked(NamedTuple):
  """What is asked: tokens of the prompt, and what must come first.

  Attributes:
    tokens: of the prompt.
    forced: characters that the answer must begin with.
    cut: how many of them are before the cursor already.
    put: text that stands in the prompt but behind the cursor.
  """

  tokens: tuple[int, ...]
  forced: str
  cut: int
  put: str


class Completer:
  """Parameters, tokenizer and compiled searches.

  Args:
    model: of `model.encoder_decoder` or `model.decoder_only`.
    params: its parameters.
    tokenizer: of both.
    max_inputs: tokens around the cursor.
    buckets: lengths that prompts are padded to; None is a quarter, a half and
      all of `max_inputs`.
    max_new_tokens: of a line.
    beam_size: lines that are looked for at once.
    name_beams: identifiers that are.
    search: 'beam' or 'tree'.
    node_budget: of a tree search.
    alpha: of the length penalty.
    prefix_share: of the context, see `examples.fit`.
    with_suffix: whether the model sees what is after the cursor.
    order: of the prompt of a decoder alone.
    heal: whether a half-typed identifier is taken off the prompt, and asked
      for again.

  Attributes:
    model, params, tokenizer, max_inputs, buckets: as given.
    num_traces: programs that were traced so far.

  Raises:
    ValueError: a setting.
  """

  def __init__(
    self,
    model: nn.Module,
    params: types.PyTree,
    tokenizer: Tokenizer,
    *,
    max_inputs: int,
    buckets: Sequence[int] | None = None,
    max_new_tokens: int = 24,
    beam_size: int = 4,
    name_beams: int = 8,
    search: str = "beam",
    node_budget: int = 64,
    alpha: float = 0.6,
    prefix_share: float = 0.75,
    with_suffix: bool = True,
    order: str = "psm",
    heal: bool = True,
  ):
    for key, value in (
      ("max_new_tokens", max_new_tokens),
      ("beam_size", beam_size),
      ("name_beams", name_beams),
    ):
      checks.positive_int(key, value)
    checks.int_in_range("beam_size", beam_size, 1, tokenizer.vocab_size)
    checks.one_of("search", search, SEARCHES)
    checks.int_in_range("max_inputs", max_inputs, 8, 2**30)
    if buckets is None:
      buckets = [max(8, max_inputs // d) for d in (4, 2, 1)]
    self.buckets = tuple(sorted(set(checks.sizes("buckets", buckets))))
    if not self.buckets or self.buckets[-1] < max_inputs:
      checks.refuse("buckets", buckets, f"with max_inputs={max_inputs}")
    self.model, self.params, self.tokenizer = model, params, tokenizer
    self.max_inputs, self.num_traces = max_inputs, 0
    self._seq2seq = isinstance(model, seq2seq.Seq2SeqLM)
    self._num, self._beams, self._names = max_new_tokens, beam_size, name_beams
    self._search, self._budget, self._alpha = search, node_budget, alpha
    self._share, self._with_suffix = prefix_share, with_suffix
    self._order, self._heal = order, heal
    self._begin = jax.jit(self._run_begin)
    self._find = jax.jit(self._run_lines)
    self._find_names = jax.jit(self._run_names)
    self._prefix = decode.text_prefix(
      tokenizer.pieces, [""], max_bytes=_FORCED_BYTES
    )
    # Whether a text may be empty; arrays of one shape, for one program.
    every = decode.by_position(np.ones((1, tokenizer.vocab_size)))
    self._first = {
      True: every,
      False: decode.not_first(
        (tokenizer.eos, *tokenizer.newlines), tokenizer.vocab_size
      ),
    }
    self._tables: dict[str, tuple[jax.Array, jax.Array]] = {}
    self._last: tuple[Any, Begun] | None = None

  # -- programs -----------------------------------------------------------

  def _run_begin(self, params, tokens, valid) -> Begun:
    self.num_traces += 1
    reserve = max(self._num, _NAME_TOKENS)
    width = 1 if self._seq2seq else tokens.shape[1]
    length = min(self.model.max_len, width + reserve)
    model = self.model.clone(cache_len=length)
    if not self._seq2seq:
      return Begun(*lm.prefill(model, params, tokens, valid=valid))
    memory = model.apply(
      {"params": params}, tokens, valid=valid, method="encode"
    )
    start = jnp.zeros((tokens.shape[0], 1), jnp.int32)
    return Begun(
      *lm.prefill(model, params, start, memory=memory, memory_valid=valid)
    )

  @staticmethod
  def _width(begun: Begun) -> int:
    """The length of the prompt that a cache was made for."""
    found = [x.shape for x in jax.tree.leaves(begun.cache) if x.ndim >= 4]
    return found[0][-2]

  def _run_lines(self, params, begun, prefix, first):
    self.num_traces += 1
    stops = (self.tokenizer.eos, *self.tokenizer.newlines)
    silent = [t for t in self.tokenizer.controls if t != self.tokenizer.eos]
    silent += [
      t
      for t, piece in enumerate(self.tokenizer.pieces)
      if piece in (b"\n", b"\r") and t not in stops
    ]
    size = self.tokenizer.vocab_size
    rule = decode.all_of(prefix, decode.never(silent, size), first)
    step = self._model_step(params, begun)
    shared = dict(
      max_new_tokens=self._num,
      stop_tokens=stops,
      alpha=self._alpha,
      constraint=rule,
    )
    if self._search == "tree":
      return decode.tree_search(
        step,
        begun.cache,
        begun.logits,
        num_results=self._beams,
        node_budget=self._budget,
        width=min(self._beams, self._budget),
        num_children=min(_CHILDREN, size),
        **shared,
      )
    return decode.beam_search(
      step, begun.cache, begun.logits, beam_size=self._beams, **shared
    )

  def _model_step(self, params, begun):
    length = self._width(begun)
    model = self.model.clone(cache_len=length)
    return lm.next_token(model, params, begun.memory)

  def _run_names(self, params, begun, prefix, word, ends):
    """Beams over identifiers, all ways to end one being a single token."""
    self.num_traces += 1
    eos = self.tokenizer.eos

    def merged(logits):
      logits = logits.astype(jnp.float32)
      end = jax.nn.logsumexp(jnp.where(ends, logits, -jnp.inf), axis=-1)
      return jnp.where(word, logits, -jnp.inf).at[:, eos].set(end)

    inner = self._model_step(params, begun)

    def step(cache, tokens):
      cache, logits = inner(cache, tokens)
      return cache, merged(logits)

    first = decode.not_first([eos], self.tokenizer.vocab_size)
    return decode.beam_search(
      step,
      begun.cache,
      merged(begun.logits),
      beam_size=self._names,
      max_new_tokens=_NAME_TOKENS,
      stop_tokens=(eos,),
      penalty="none",
      constraint=decode.all_of(prefix, first),
    )

  # -- prompts ------------------------------------------------------------

  def _ask(
    self, prefix: str, suffix: str, language: str, forced: str, heal: bool
  ) -> _Asked:
    typed = languages.typed(prefix, language) if heal else ""
    if len((typed + forced).encode()) > _FORCED_BYTES:
      prefix, typed, put, forced = prefix + forced, "", forced, ""
    else:
      prefix, put = prefix[: len(prefix) - len(typed)], ""
    if not self._with_suffix:
      suffix = ""
    settings = dict(max_tokens=self.max_inputs, prefix_share=self._share)
    if self._seq2seq:
      make = examples.input_tokens
    else:
      make, settings["order"] = examples.fim_tokens, self._order
    tokens = make(prefix, suffix, language, self.tokenizer, **settings)
    return _Asked(tuple(tokens), typed + forced, len(typed), put)

  def _begun(self, asked: _Asked) -> Begun:
    """The request after its prompt; the last one is remembered."""
    if self._last is None or self._last[0] != asked.tokens:
      tokens, valid = decode.pad_prompts(
        [asked.tokens], self.buckets, side="right", pad_token=self.tokenizer.pad
      )
      begun = self._begin(self.params, tokens, valid)
      self._last = (asked.tokens, begun)
    return self._last[1]

  def _forced(self, asked: _Asked):
    return decode.with_prefixes(
      self._prefix, [asked.forced], max_bytes=_FORCED_BYTES
    )

  def _words(self, language: str) -> tuple[jax.Array, jax.Array]:
    """Tokens that are part of an identifier, and those that end one, `[V]`."""
    kind = _WORD.get(language, r"\w+")
    if kind not in self._tables:
      texts = [
        piece.decode("utf-8", errors="replace")
        for piece in self.tokenizer.pieces
      ]
      word = np.array([bool(re.fullmatch(kind, t)) for t in texts])
      other = [
        bool(t) and _REPLACEMENT not in t and not re.match(kind, t)
        for t in texts
      ]
      ends = np.array(other)
      ends[self.tokenizer.eos] = True
      self._tables[kind] = (jnp.asarray(word), jnp.asarray(ends))
    return self._tables[kind]

  # -- what is asked ------------------------------------------------------

  def warm_up(self, language: str = "python") -> int:
    """Compiles all programs; how many were traced."""
    before = self.num_traces
    for size in self.buckets:
      filler = (self.tokenizer.pad,) * size
      asked = _Asked(filler, "", 0, "")
      begun = self._begun(asked)
      forced = self._forced(asked)
      self._find(self.params, begun, forced, self._first[False])
      self._find_names(self.params, begun, forced, *self._words(language))
    self._last = None
    return self.num_traces - before

  def lines(
    self,
    prefix: str,
    suffix: str,
    language: str,
    *,
    forced: str = "",
    allow_empty: bool = False,
  ) -> list[Suggestion]:
    """Ways in which the line at the cursor may go on, best first.

    Args:
      prefix, suffix: the text before and after the cursor.
      language: of the text.
      forced: characters that every suggestion must begin with.
      allow_empty: whether nothing at all is a suggestion, too.

    Returns:
      At most `beam_size` suggestions, no two the same.

    Raises:
      ValueError: an unknown language.
    """
    asked = self._ask(prefix, suffix, language, forced, self._heal)
    found = self._find(
      self.params,
      self._begun(asked),
      self._forced(asked),
      self._first[checks.boolean("allow_empty", allow_empty)],
    )
    found = jax.device_get(found)
    stops = {self.tokenizer.eos, *self.tokenizer.newlines}
    out: dict[str, Suggestion] = {}
    for k in np.flatnonzero(found.valid[0]):
      length = int(found.lengths[0, k])
      tokens = found.tokens[0, k, :length].tolist()
      if tokens and tokens[-1] in stops:
        tokens.pop()
      text = self.tokenizer.decode(tokens)
      if not text.startswith(asked.forced) or _REPLACEMENT in text:
        continue
      text = asked.put + text[asked.cut :]
      if text.strip() or allow_empty:
        total = float(found.log_probs[0, k, :length].sum())
        finished = bool(found.finished[0, k])
        suggestion = Suggestion(text, total, length, finished, tuple(tokens))
        out.setdefault(text, suggestion)
    return list(out.values())

  def names(self, prefix: str, suffix: str, language: str) -> list[Name]:
    """The identifiers that may stand at the cursor, the most probable first.

    What is typed of one is taken off the prompt, whatever `heal` says, and is
    part of the names; probabilities count it. They are sums over all that may
    follow an identifier.
    """
    asked = self._ask(prefix, suffix, language, "", True)
    found = self._find_names(
      self.params,
      self._begun(asked),
      self._forced(asked),
      *self._words(language),
    )
    found = jax.device_get(found)
    out: dict[str, float] = {}
    for k in np.flatnonzero(found.valid[0] & found.finished[0]):
      tokens = found.tokens[0, k, : int(found.lengths[0, k]) - 1].tolist()
      text = self.tokenizer.decode(tokens)
      name = languages.first_token(asked.forced, text[asked.cut :], language)
      if name is not None and name == text and _REPLACEMENT not in text:
        out[name] = out.get(name, 0.0) + math.exp(float(found.scores[0, k]))
    return sorted(
      (Name(*pair) for pair in out.items()), key=lambda n: -n.probability
    )

  def continue_focused(
    self, prefix: str, suffix: str, language: str, item: str
  ) -> list[Suggestion]:
    """Lines that go on from the focused item of an editor's list.

    Args:
      prefix, suffix, language: around the cursor.
      item: the identifier that is focused; it begins with what is typed.

    Returns:
      Suggestions that extend the rest of the item.

    Raises:
      ValueError: an item that does not begin with what is typed.
    """
    typed = languages.typed(prefix, language)
    if not item.startswith(typed) or not item:
      checks.refuse("item", item, f"an identifier that begins with {typed!r}")
    return self.lines(prefix, suffix, language, forced=item[len(typed) :])

  def several_lines(
    self,
    prefix: str,
    suffix: str,
    language: str,
    *,
    thresholds: Sequence[float],
    max_lines: int = 8,
  ) -> list[Suggestion]:
    """Line after line, as long as each is sure enough; see `multi_line`."""

    def predict(prefix, suffix):
      found = self.lines(prefix, suffix, language)
      return found[0] if found else None

    return multi_line.multi_line(
      predict, prefix, suffix, thresholds=thresholds, max_lines=max_lines
    )
