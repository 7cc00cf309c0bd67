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
  wilson_interval,
)
from locojax.methods.minerva.latex_reader import Answer, read_answer
from locojax.methods.minerva.latex_tokens import Unreadable
from locojax.methods.minerva.ocw import grade_ocw
from locojax.methods.minerva.symbolic import ENGINES, PROGRAM, Symbolic
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
  "MISTAKES",
  "OUTCOMES",
  "PROGRAM",
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
  "extract_final_answer",
  "false_positive_rates",
  "false_positive_sheet",
  "grade_ocw",
  "group",
  "is_equivalent",
  "last_boxed",
  "maj_at_k",
  "maj_limit",
  "majority",
  "normalize_answer",
  "pass_at_k",
  "perturb_numbers",
  "read_answer",
  "rerank",
  "weighted_majority",
  "wilson_interval",
]
