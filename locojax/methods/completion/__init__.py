"""Code completion: a language model and semantic engines together.

After "ML-Enhanced Code Completion Improves Developer Productivity" (Google
Research blog, 2022), of which there is neither a paper nor code.

The model proposes, from examples with the rest of a line masked:

    example = completion.make_example(text, offset, language="python")
    model = completion.encoder_decoder(
      "cpu_tiny", max_inputs=256, max_targets=64)
    loss_fn = completion.make_loss_fn(model)
    completer = completion.Completer(model, params, tokenizer, max_inputs=256)

and is joined with an engine (`locojax.engines`) in three ways:

    names = completer.names(prefix, suffix, "python")
    order = completion.rerank(items, [n.text for n in names])
    checker = completion.Checker(engine, uri, offset)
    kept = [s for s in completer.lines(prefix, suffix, "python")
            if checker(s.text).kept]
    inline = completer.continue_focused(prefix, suffix, "python", order[0])
"""

from locojax.methods.completion.check import (
  DROPS,
  KINDS,
  ON_TIMEOUT,
  Checked,
  Checker,
  check,
  new_errors,
)
from locojax.methods.completion.completer import (
  SEARCHES,
  Completer,
  Name,
  Suggestion,
)
from locojax.methods.completion.examples import (
  MASKINGS,
  ORDERS,
  Example,
  Fim,
  Tokenizer,
  context_tokens,
  fim_tokens,
  fim_transform,
  fit,
  input_tokens,
  line_end,
  make_example,
  sample_example,
)
from locojax.methods.completion.languages import (
  IDENTIFIERS,
  LANGUAGES,
  first_token,
  identifier,
  member_starts,
  typed,
  word_starts,
)
from locojax.methods.completion.metrics import (
  CLASSES,
  CompileRates,
  Event,
  RankChanges,
  acceptance_rate,
  chars_per_accept,
  compile_rates,
  edit_similarity,
  exact_match,
  fraction_added,
  in_first,
  levenshtein,
  rank_changes,
  reciprocal_rank,
  typed_before_accept,
)
from locojax.methods.completion.model import (
  PRESETS,
  decoder_only,
  encoder_decoder,
  num_parameters,
  sizes,
)
from locojax.methods.completion.multi_line import (
  LogisticConfidence,
  fit_threshold,
  multi_line,
  precision_coverage,
)
from locojax.methods.completion.ngram import (
  NGramCache,
  words,
)
from locojax.methods.completion.rerank import (
  SELECTS,
  rerank,
)
from locojax.methods.completion.simulate import (
  Comparison,
  Offer,
  Session,
  SimulatedUser,
  ab_test,
  merge,
)
from locojax.methods.completion.training import (
  decoder_batch,
  encoder_decoder_batch,
  make_loss_fn,
  target_tokens,
)

__all__ = [
  "CLASSES",
  "Checked",
  "Checker",
  "Comparison",
  "CompileRates",
  "Completer",
  "DROPS",
  "Event",
  "Example",
  "Fim",
  "IDENTIFIERS",
  "KINDS",
  "LANGUAGES",
  "LogisticConfidence",
  "MASKINGS",
  "NGramCache",
  "Name",
  "ON_TIMEOUT",
  "ORDERS",
  "Offer",
  "PRESETS",
  "RankChanges",
  "SEARCHES",
  "SELECTS",
  "Session",
  "SimulatedUser",
  "Suggestion",
  "Tokenizer",
  "ab_test",
  "acceptance_rate",
  "chars_per_accept",
  "check",
  "compile_rates",
  "context_tokens",
  "decoder_batch",
  "decoder_only",
  "edit_similarity",
  "encoder_decoder",
  "encoder_decoder_batch",
  "exact_match",
  "fim_tokens",
  "fim_transform",
  "first_token",
  "fit",
  "fit_threshold",
  "fraction_added",
  "identifier",
  "in_first",
  "input_tokens",
  "levenshtein",
  "line_end",
  "make_example",
  "make_loss_fn",
  "member_starts",
  "merge",
  "multi_line",
  "new_errors",
  "num_parameters",
  "precision_coverage",
  "rank_changes",
  "reciprocal_rank",
  "rerank",
  "sample_example",
  "sizes",
  "target_tokens",
  "typed",
  "typed_before_accept",
  "word_starts",
  "words",
]
