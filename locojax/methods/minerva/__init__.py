"""Minerva: quantitative reasoning with a language model.

Lewkowycz et al., "Solving Quantitative Reasoning Problems with Language
Models", arXiv 2206.14858.

    answer = minerva.extract_final_answer(solution, "math")
    minerva.normalize_answer(answer, "paper")
    minerva.compare(r"\\frac{1}{\\sqrt{2}}", "sqrt(2)/2").outcome    # "equal"
    classes = minerva.group(answers)
    minerva.majority(classes)
    minerva.maj_at_k(classes.counts, correct, classes.invalid, k)
    minerva.pass_at_k(n, c, k)

A decoder, its loss and its samples:

    config = minerva.preset("palm_tiny")
    model = minerva.palm_model(config)
    loss = minerva.lm_loss(logits, targets, weights).value
    tx = minerva.palm_adafactor(minerva.rsqrt_schedule(num_steps=1000))
    out = minerva.sample(model, params, tokens, num_samples=64, key=key)

What exact values leave open goes to SymPy, in processes of its own:

    with workers.WorkerPool(minerva.PROGRAM, num_workers=2) as pool:
      checker = minerva.EquivalenceChecker(minerva.Symbolic(pool))
"""

from locojax.methods.minerva.analysis import (
  MISTAKES,
  answer_categories,
  answer_category,
  bleu_overlap,
  false_positive_rates,
  false_positive_sheet,
  perturb_numbers,
)
from locojax.methods.minerva.answers import (
  INVALID,
  TASKS,
  extract_final_answer,
  last_boxed,
  normalize_answer,
)
from locojax.methods.minerva.equivalence import (
  UNITS,
  EquivalenceChecker,
  canonical_key,
  compare,
  is_equivalent,
)
from locojax.methods.minerva.estimators import (
  bootstrap_ci,
  maj_at_k,
  maj_limit,
  pass_at_k,
  rerank_at_k,
  wilson_interval,
)
from locojax.methods.minerva.latex_reader import Answer, read_answer
from locojax.methods.minerva.latex_tokens import Unreadable
from locojax.methods.minerva.ocw import grade_ocw
from locojax.methods.minerva.palm import (
  PRESETS,
  PaLMConfig,
  count_params,
  fuse,
  palm_model,
  preset,
)
from locojax.methods.minerva.prompts import (
  MMLU_STEM,
  STOPS,
  gsm8k_8shot,
  left_truncate,
  math_4shot,
  mmlu_stem,
  ocw_4shot,
  takes_math_examples,
  without_marks,
)
from locojax.methods.minerva.sampling import log_likelihoods, sample, sampler
from locojax.methods.minerva.symbolic import ENGINES, PROGRAM, Symbolic
from locojax.methods.minerva.training import (
  LmLoss,
  lm_loss,
  palm_adafactor,
  palm_direction,
  rsqrt_schedule,
)
from locojax.methods.minerva.verdicts import OUTCOMES, Verdict
from locojax.methods.minerva.voting import (
  Classes,
  group,
  majority,
  rerank,
  weighted_majority,
)

__all__ = [
  "Answer",
  "Classes",
  "ENGINES",
  "EquivalenceChecker",
  "INVALID",
  "LmLoss",
  "MISTAKES",
  "MMLU_STEM",
  "OUTCOMES",
  "PRESETS",
  "PROGRAM",
  "PaLMConfig",
  "STOPS",
  "Symbolic",
  "TASKS",
  "UNITS",
  "Unreadable",
  "Verdict",
  "answer_categories",
  "answer_category",
  "bleu_overlap",
  "bootstrap_ci",
  "canonical_key",
  "compare",
  "count_params",
  "extract_final_answer",
  "false_positive_rates",
  "false_positive_sheet",
  "fuse",
  "grade_ocw",
  "group",
  "gsm8k_8shot",
  "is_equivalent",
  "last_boxed",
  "left_truncate",
  "lm_loss",
  "log_likelihoods",
  "maj_at_k",
  "maj_limit",
  "majority",
  "math_4shot",
  "mmlu_stem",
  "normalize_answer",
  "ocw_4shot",
  "palm_adafactor",
  "palm_direction",
  "palm_model",
  "pass_at_k",
  "perturb_numbers",
  "preset",
  "read_answer",
  "rerank",
  "rerank_at_k",
  "rsqrt_schedule",
  "sample",
  "sampler",
  "takes_math_examples",
  "weighted_majority",
  "wilson_interval",
  "without_marks",
]
