"""What the settings of streams may be."""

from __future__ import annotations

from experiments.common import places, settings
from experiments.l2p import learners, networks, sets, tasks
from locojax.core import checks
from locojax.methods import l2p
from locojax.methods.l2p import freezing, selection
from locojax.methods.l2p import model as l2p_model
from locojax.nn import transformer, vit, vit_formats

STAGES = ("backbone", "task")
_KEY_INITS = (*l2p.INITIALIZERS, "kmeans")
_COUNT = checks.nonnegative_int

_OWN = "folder"


def _name(name: str, found: str) -> None:
  """A set of `sets`, or the user's own folder."""
  if found != _OWN:
    sets.parse(name, found)


RULES: dict[str, settings.Rule] = {
  **settings.COMMON,
  "methods": settings.several(
    settings.choice(learners.LEARNERS), what="methods"
  ),
  "method": settings.choice(learners.LEARNERS),
  "stage": settings.choice(STAGES),
  "task": _COUNT,
  "data.kind": settings.choice(tasks.KINDS),
  "data.names": settings.several(_name, what="data sets"),
  "data.backbone": settings.several(sets.parse, least=0, what="data sets"),
  "data.num_tasks": _COUNT,
  **dict.fromkeys(
    ("data.checkpoint", "data.data_dir", "data.path"), places.there
  ),
  "data.format": settings.either("", settings.choice(vit_formats.FORMATS)),
  "data.image_size": checks.positive_int,
  "data.channels": settings.choice((1, 3)),
  **dict.fromkeys(
    ("data.train_per_class", "data.test_per_class", "data.backbone_per_class"),
    _COUNT,
  ),
  **dict.fromkeys(("data.shared_classes", "data.has_test"), checks.boolean),
  "data.seed": settings.seed,
  **dict.fromkeys(
    ("gaussian.num_episodes", "gaussian.steps_per_episode"),
    checks.positive_int,
  ),
  "gaussian.std": checks.positive,
  "model.preset": settings.either("", settings.choice(vit.PRESETS)),
  **dict.fromkeys(
    (
      *("model.patch_size", "model.width", "model.num_layers"),
      *("model.num_heads", "model.hidden_size"),
    ),
    checks.positive_int,
  ),
  "model.dtype": settings.choice(settings.DTYPES),
  "model.remat": settings.choice(transformer.REMATS),
  "model.scan": checks.boolean,
  **dict.fromkeys(
    ("pretrain.num_steps", "pretrain.batch_size"), checks.positive_int
  ),
  "pretrain.learning_rate": checks.positive,
  "pretrain.weight_decay": checks.positive,
  "pretrain.warmup_steps": _COUNT,
  "pretrain.crop_pad": _COUNT,
  **dict.fromkeys(
    ("pool.pool_size", "pool.length", "pool.top_k"), checks.positive_int
  ),
  "pool.key_init": settings.choice(_KEY_INITS),
  "pool.prompt_init": settings.choice(l2p.INITIALIZERS),
  "pool.key_loss_weight": checks.nonnegative,
  "pool.selection": settings.choice(selection.MODES),
  "pool.head": settings.choice(l2p_model.HEADS),
  **dict.fromkeys(
    (
      *("batch_size", "num_epochs", "ewc_examples", "ewc_every"),
      *("buffer_per_class", "eval_batch_size", "log_every"),
    ),
    checks.positive_int,
  ),
  **dict.fromkeys(("learning_rate", "learning_rate_all"), checks.positive),
  "clip_norm": checks.nonnegative,
  "clip_scope": settings.choice(freezing.CLIP_SCOPES),
  "crop_pad": _COUNT,
  "cache_queries": checks.boolean,
  **dict.fromkeys(
    ("ewc_weight", "lwf_weight", "derpp_alpha", "derpp_beta"),
    checks.nonnegative,
  ),
  "lwf_temperature": checks.positive,
  "save_every": _COUNT,
  "needs_data": checks.boolean,
}


def check(config) -> None:
  """Refuses what a run or the study cannot go on with.

  Raises:
    ValueError: names the key, its value, and what is allowed.
  """
  settings.check(config, RULES)
  _check_model(config)
  _check_tasks(config)
  _check_pool(config)
  settings.divides_mesh(config, "batch_size")
  settings.divides_mesh(config, "pretrain.batch_size")
  if config.needs_data:
    _check_data(config)


def check_run(config) -> None:
  """What training needs besides: data.

  Raises:
    ValueError: names the key.
  """
  settings.must_read_data(config)
  if not config.data.checkpoint and not config.data.backbone:
    checks.refuse(
      "data.backbone", (), "one or more data sets, unless there is a checkpoint"
    )


def _check_model(config) -> None:
  model = config.model
  if not model.preset:
    checks.divisible(
      "model.width", model.width, "model.num_heads", model.num_heads
    )
  side = networks.backbone(config).patch_size
  if config.data.image_size % side:
    checks.refuse(
      "data.image_size",
      config.data.image_size,
      f"a multiple of {side}, the side of a patch",
    )
  steps, warmup = config.pretrain.num_steps, config.pretrain.warmup_steps
  if warmup > steps:
    checks.refuse(
      "pretrain.warmup_steps", warmup, f"at most pretrain.num_steps={steps}"
    )


def _check_tasks(config) -> None:
  """Sets and tasks that go with the kind of stream."""
  data, kind = config.data, config.data.kind
  names = tuple(data.names)
  if (kind == _OWN) != (names == (_OWN,)):
    checks.refuse("data.names", names, f"('{_OWN}',) for kind '{_OWN}' alone")
  if kind == _OWN:
    if not data.path:
      checks.refuse("data.path", "", "a folder of tasks of classes of images")
  elif kind == "several":
    if len(names) < 2:
      checks.refuse("data.names", names, "two or more data sets")
  elif len(names) != 1:
    checks.refuse("data.names", names, f"one data set for a {kind} stream")
  if kind == "split":
    most = sets.num_classes(names[0])
    checks.int_in_range("data.num_tasks", data.num_tasks, 1, most)
  if kind == "rotated":
    checks.positive_int("data.num_tasks", data.num_tasks)
  if kind == "gaussian":
    _check_methods(config)


def _check_methods(config) -> None:
  """Without boundaries some methods cannot do."""
  told = [n for n, x in learners.LEARNERS.items() if x.needs_boundaries]
  allowed = f"without {', '.join(told)}, which must be told where tasks end"
  if set(told) & set(config.methods):
    checks.refuse("methods", tuple(config.methods), allowed)
  if config.method in told:
    checks.refuse("method", config.method, allowed)


def _check_pool(config) -> None:
  pool = config.pool
  if pool.top_k > pool.pool_size:
    checks.refuse(
      "pool.top_k", pool.top_k, f"at most pool.pool_size={pool.pool_size}"
    )
  if pool.selection == "forced" and config.data.kind == "gaussian":
    checks.refuse(
      "pool.selection", "forced", "another one: there are no boundaries"
    )
  if pool.key_init == "kmeans" and not config.cache_queries:
    checks.refuse("cache_queries", False, "True with pool.key_init='kmeans'")
  if config.cache_queries and config.crop_pad:
    checks.refuse(
      "crop_pad", config.crop_pad, "0 with cached queries (cache_queries=True)"
    )


def _check_data(config) -> None:
  data = config.data
  # With a checkpoint nothing is pre-trained.
  for key in ("names",) if data.checkpoint else ("names", "backbone"):
    for name in set(data[key]) - {_OWN}:
      of, _, _ = sets.parse(f"data.{key}", name)
      places.data_set(f"data.{key}", of, data.data_dir, tuple(data[key]))
  if data.kind == _OWN:
    what = "a folder of tasks of classes of images"
    places.path("data.path", data.path, what, folder=True)
