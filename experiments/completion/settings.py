"""What the settings of code completion may be."""

from __future__ import annotations

from experiments.common import places, settings
from experiments.completion import conditions, corpora
from locojax import engines
from locojax.core import checks
from locojax.data import code, code_tokens
from locojax.methods import completion
from locojax.nn import transformer
from locojax.train import optimizers

_COUNT = checks.nonnegative_int
_SIZES = tuple(completion.PRESETS["cpu_tiny"])
NO_ENGINE, AUTO = "none", "auto"
_LANGUAGE = settings.either("", settings.choice(code.LANGUAGES))

RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "methods": settings.several(
    settings.choice(conditions.CONDITIONS), what="methods"
  ),
  "method": settings.choice(conditions.CONDITIONS),
  "language": _LANGUAGE,
  "data.name": settings.choice(corpora.NAMES),
  "data.path": places.there,
  "data.languages": settings.several(
    settings.choice(code.LANGUAGES), least=0, what="languages"
  ),
  "data.depth": checks.positive_int,
  "data.max_bytes": checks.positive_int,
  "data.near": lambda name, found: checks.between(name, found, 0.0, 1.000001),
  "data.seed": settings.within(0, 2**30, whole=True),
  "tokenizer.vocab_size": settings.within(300, 2**20, whole=True),
  "tokenizer.kind": settings.choice(code_tokens.KINDS),
  "tokenizer.max_bytes": checks.positive_int,
  "model.preset": settings.choice(completion.PRESETS),
  "model.sizes": settings.group(dict.fromkeys(_SIZES, checks.positive_int)),
  "model.max_inputs": settings.within(16, 2**16, whole=True),
  "model.max_targets": settings.within(4, 2**14, whole=True),
  "model.prefix_share": settings.share,
  "model.order": settings.choice(completion.ORDERS),
  "model.dtype": settings.choice(settings.DTYPES),
  "model.remat": settings.choice(transformer.REMATS),
  "model.scan": checks.boolean,
  "model.z_loss": checks.nonnegative,
  "model.context_weight": checks.positive,
  **dict.fromkeys(
    ("examples.starts", "examples.several_lines"), settings.share
  ),
  "examples.max_follow": checks.positive_int,
  "ngram.order": settings.within(1, 10, whole=True),
  "ngram.cache_share": settings.decay,
  "ngram.cache_words": checks.positive_int,
  "optimizer.name": settings.choice(optimizers.OPTIMIZERS),
  "optimizer.learning_rate": checks.positive,
  "optimizer.schedule": settings.choice(optimizers.SCHEDULES),
  "optimizer.warmup_steps": _COUNT,
  "optimizer.final": settings.share,
  "optimizer.weight_decay": checks.nonnegative,
  "optimizer.clip_norm": checks.nonnegative,
  "optimizer.options": lambda name, found: found,
  **dict.fromkeys(
    (
      *("ask.max_new_tokens", "ask.beam_size", "ask.name_beams"),
      *("ask.node_budget", "eval.k", "eval.visible", "eval.max_lines"),
      *("user.min_chars", "batch_size", "num_steps", "num_evals"),
      *("eval_batch_size", "eval_batches", "log_every"),
      *("eval.num_positions", "eval.num_texts"),
    ),
    checks.positive_int,
  ),
  "ask.search": settings.choice(completion.SEARCHES),
  "ask.alpha": checks.nonnegative,
  "ask.heal": checks.boolean,
  "eval.engine": settings.choice((AUTO, NO_ENGINE)),
  "eval.judge": settings.either("", settings.choice(engines.NAMES)),
  "eval.timeout": checks.positive,
  "eval.precision": lambda name, found: checks.between(
    name, found, 0.0, 1.000001
  ),
  **dict.fromkeys(
    ("eval.num_members", "eval.num_several", "save_every"), _COUNT
  ),
  **dict.fromkeys(("user.reading_cost", "user.read_ms"), checks.nonnegative),
  **dict.fromkeys(("user.visible", "user.skips"), _COUNT),
  "needs_data": checks.boolean,
}


def check(config) -> None:
  """Refuses what cannot be trained.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  options = config.optimizer.options.to_dict()
  settings.optimizer_options(
    "optimizer.options", config.optimizer.name, options
  )
  settings.at_most(
    config, "optimizer.warmup_steps", config.num_steps, "the num_steps"
  )
  settings.at_most(config, "num_evals", config.num_steps, "the num_steps")
  settings.at_most(
    config,
    "ask.max_new_tokens",
    config.model.max_targets,
    "model.max_targets",
  )
  sizes = completion.sizes(config.model.preset, **config.model.sizes.to_dict())
  checks.divisible(
    "model.sizes.model_size",
    sizes["model_size"],
    "num_heads",
    sizes["num_heads"],
  )
  settings.divides_mesh(config, "batch_size")
  kinds = {conditions.CONDITIONS[m].kind for m in config.methods}
  if kinds == {"ngram"}:
    checks.refuse("methods", config.methods, "one that is trained, or more")
  if config.data.name != "folder" and config.data.languages:
    checks.refuse(
      "data.languages",
      config.data.languages,
      f"() with data.name={config.data.name!r}, which is Python",
    )


def check_run(config) -> None:
  """What a study needs besides: data, and a judge that is installed.

  Raises:
    ValueError: names the key.
  """
  settings.must_read_data(config)
  if config.data.name == "folder":
    places.path(
      "data.path",
      config.data.path,
      "a folder of source code, with data.name='folder'",
    )
  judge = config.eval.judge
  if judge and not engines.is_installed(judge):
    checks.refuse(
      "eval.judge", judge, "an engine that is installed, see install_engines"
    )
