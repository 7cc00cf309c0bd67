"""Checks of a config before anything runs, in the voice of `core.checks`.

A rule is a check of one value: `(name, value) -> value`, raising `ValueError`.
The functions of `locojax.core.checks` that need no more are rules; those here
make others of them. An experiment keeps a table of rules by dotted key,

    RULES = {
      **settings.COMMON,
      "data.num_train": checks.positive_int,
      "model.hidden": checks.sizes,
      "learning_rates": settings.several(checks.positive),
    }

and its `check(config)` is `settings.check(config, RULES)` and what several keys
say together. What is refused is named as the user wrote it:
`data.num_train=0`. A test sees to it that no key is without a rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from locojax.core import checks
from locojax.train import optimizers, profiling, sharding, topology

Rule = Callable[[str, Any], Any]
DTYPES = ("float32", "bfloat16", "float16")
# Height and width; number of training and test examples.
SIDES = {
  "digits": 8,
  "mnist": 28,
  "fashion_mnist": 28,
  **dict.fromkeys(("cifar10", "cifar10_n", "cifar100"), 32),
}
COUNTS = {
  "digits": {"num_train": 1442, "num_test": 355},
  **dict.fromkeys(
    ("mnist", "fashion_mnist"), {"num_train": 60_000, "num_test": 10_000}
  ),
  **dict.fromkeys(
    ("cifar10", "cifar10_n", "cifar100"),
    {"num_train": 50_000, "num_test": 10_000},
  ),
}


def value(config: Any, key: str) -> Any:
  """The value of a dotted key, `value(config, "data.num_train")`."""
  for part in key.split("."):
    config = config[part]
  return config


def check(config: Any, rules: Mapping[str, Rule]) -> None:
  """Every key by its rule.

  Args:
    config: of an experiment.
    rules: by dotted key. The rule of a key with others below it sees the dict
      of them all; one whose key the config lacks has nothing to say.

  Raises:
    ValueError: a value that its rule refuses.
  """
  tree = config.to_dict()
  for key, rule in rules.items():
    *folders, last = key.split(".")
    place = tree
    for name in folders:
      place = place.get(name, {})
      if not isinstance(place, Mapping):
        checks.refuse(".".join(folders), place, f"a dict with {last!r}")
    if last in place:
      rule(key, place[last])


def choice(allowed: Iterable[Any]) -> Rule:
  """One of several values, of the same type as well."""
  allowed = tuple(allowed)

  def rule(name, found):
    same = [a for a in allowed if type(a) is type(found)]
    return checks.one_of(name, found, same if found in same else allowed)

  return rule


def seed(name: str, found: int) -> int:
  """A seed of numpy's and jax's generators."""
  return checks.seed(name, found)


def share(name: str, found: float) -> float:
  """A number in [0, 1]."""
  return checks.in_range(name, found, 0.0, 1.0)


def within(low: float, high: float, *, whole: bool = False) -> Rule:
  """A number, or an integer, in [low, high]."""
  one = checks.int_in_range if whole else checks.in_range
  return lambda name, found: one(name, found, low, high)


def decay(name: str, found: float) -> float:
  """A number in [0, 1): a momentum, a decay, a rate of dropout."""
  return checks.below(name, found, 0.0, 1.0)


def either(default: Any, rule: Rule) -> Rule:
  """What `rule` allows, or a value that stands for none, such as 0."""

  def or_default(name, found):
    if type(found) is type(default) and found == default:
      return found
    try:
      return rule(name, found)
    except ValueError as error:
      raise ValueError(f"{str(error)[:-1]}, or {default!r}.") from error

  return or_default


def several(
  rule: Rule, *, least: int = 1, distinct: bool = True, what: str = "entries"
) -> Rule:
  """A list whose members a rule allows.

  Args:
    rule: of each.
    least: how many there must be.
    distinct: whether no two may be equal.
    what: they are, for the message.
  """

  def each(name, found):
    if isinstance(found, (str, Mapping)) or not isinstance(found, Sequence):
      checks.refuse(name, found, f"a list of {what}, such as (a, b) or (a,)")
    if len(found) < least:
      checks.refuse(name, found, f"a list of {least} or more {what}")
    for i, one in enumerate(found):
      try:
        rule(f"{name}[{i}]", one)
      except ValueError as error:
        raise ValueError(f"{error} Given was {name}={found!r}.") from error
    if distinct and len({str(one) for one in found}) < len(found):
      checks.refuse(name, found, f"a list of {what} that all differ")
    return found

  return each


def group(rules: Mapping[str, Rule], required: Iterable[str] = ()) -> Rule:
  """A dict of settings, such as an entry of a table: known names, by rule."""

  def rule(name, found):
    if not isinstance(found, Mapping):
      checks.refuse(name, found, f"a dict with {', '.join(rules)}")
    for key in required:
      if key not in found:
        checks.refuse(name, dict(found), f"a dict with {key!r}")
    for key, one in found.items():
      checks.one_of(f"setting of {name}", key, rules)
      rules[key](f"{name}.{key}", one)
    return found

  return rule


def table(rule: Rule, *, least: int = 1) -> Rule:
  """A dict of any names whose entries a rule allows."""

  def each(name, found):
    if not isinstance(found, Mapping) or len(found) < least:
      checks.refuse(name, found, f"a dict of {least} or more entries")
    for key, one in found.items():
      rule(f"{name}.{key}", one)
    return found

  return each


def anything(name: str, found: Any) -> Any:
  """No rule of its own: another key's check sees to it."""
  del name
  return found


_OPTIMIZER_RULES: dict[str, Rule] = {
  **dict.fromkeys(("learning_rate", "clip_norm"), checks.positive),
  **dict.fromkeys(
    ("weight_decay", "initial_accumulator_value"), checks.nonnegative
  ),
  **dict.fromkeys(("b1", "b2", "b3", "momentum", "decay"), share),
  **dict.fromkeys(("beta", "decay_rate", "decay_cap"), share),
  **dict.fromkeys(("eps", "eps_root", "epsilon"), checks.nonnegative),
  **dict.fromkeys(("nesterov", "adaptive"), checks.boolean),
  **dict.fromkeys(("ns_steps", "min_dim_size_to_factor"), checks.positive_int),
}


def optimizer_options(
  name: str, kind: str, options: Mapping[str, Any], more: Iterable[str] = ()
) -> None:
  """The options of `optimizers.make`, as far as they are numbers.

  Args:
    name: dotted key of the options.
    kind: a key of `optimizers.OPTIMIZERS`.
    options: by name.
    more: names that `optimizers.make` or the experiment takes besides.

  Raises:
    ValueError: an unknown option, or a number out of range.
  """
  allowed = (*optimizers.allowed_options(kind), *more)
  for option in options:
    checks.one_of(f"setting of {name}", option, allowed)
  numbers(name, options)


def mesh(name: str, axes: Mapping[str, int]) -> Mapping[str, int]:
  """Sizes of the mesh axes; one may be -1."""
  for axis, size in axes.items():
    checks.one_of(f"axis of {name}", axis, sharding.AXES)
    if type(size) is not int or size != -1:
      either(-1, checks.positive_int)(f"{name}.{axis}", size)
  free = [axis for axis in sharding.AXES if axes.get(axis) == -1]
  if len(free) > 1:
    other = f"where {name}.{free[0]} is -1"
    checks.refuse(f"{name}.{free[1]}", -1, f"an integer, 1 or more, {other}")
  return axes


def rules(name: str, found: Sequence[Any]) -> Sequence[Any]:
  """Sharding rules: pairs of a regex and the axes of each dimension."""
  allowed = "pairs of a regex and axes, such as (('kernel$', (None, 'model')),)"
  for pair in several(anything, least=0, distinct=False)(name, found):
    if not isinstance(pair, Sequence) or len(pair) != 2:
      checks.refuse(name, found, allowed)
    try:
      re.compile(pair[0])
    except (re.error, TypeError):
      checks.refuse(name, found, f"{allowed}: {pair[0]!r} is no regex")
    for entry in several(anything, least=0, distinct=False)(name, pair[1]):
      for axis in (entry,) if isinstance(entry, str) else entry or ():
        if axis not in sharding.AXES:
          checks.refuse(name, found, f"of the mesh axes {sharding.AXES}")
  return found


def profile(name: str, found: Mapping[str, int]) -> Mapping[str, int]:
  """The window of steps that is traced."""
  group(dict.fromkeys(("start", "num_steps"), checks.nonnegative_int))(
    name, found
  )
  profiling.window(dict(found))
  return found


def _topology(name: str, found: str) -> str:
  """A slice such as `v5e:4x4`; empty for none."""
  if checks.text(name, found):
    try:
      topology.parse(found)
    except ValueError as error:
      raise ValueError(f"{name}={found!r} is not allowed: {error}") from error
  return found


CHECK_RULES: dict[str, Rule] = {
  "topology": _topology,
  "hbm_bytes": checks.nonnegative_int,
  "num_devices": checks.nonnegative_int,
  "allowed_collectives": several(checks.text, least=0),
  "num_slices": checks.nonnegative_int,
  "max_operations": checks.nonnegative,
}


COMMON: dict[str, Rule] = {
  "experiment": checks.text,
  "seed": seed,
  "mesh": mesh,
  "profile": profile,
  "check": group(CHECK_RULES),
  "keep": checks.positive_int,
  "results": checks.text,
  "rules": rules,
  "seeds": several(seed, what="seeds"),
}


def numbers(name: str, options: Mapping[str, Any]) -> None:
  """Options of an optimiser by their usual meaning, as far as they have one."""
  for option, found in options.items():
    _OPTIMIZER_RULES.get(option, anything)(f"{name}.{option}", found)


def must_read_data(config: Any) -> None:
  """A run needs data; a config without serves `--mode=check` alone."""
  if not config.needs_data:
    checks.refuse("needs_data", False, "True: without data only --mode=check")


def made(key: str, function: Callable, *given: Any, **settings: Any) -> Any:
  """What a function makes of the settings below a key.

  What it refuses is told with the key in front: `optimizers.adam.b2=2.0`.

  Args:
    key: dotted key of the settings.
    function: any that checks its arguments; it should be cheap.
    *given: what the caller gives itself.
    **settings: of the config, by name.

  Raises:
    ValueError: a setting that the function refuses, does not have, or lacks.
  """
  try:
    return function(*given, **settings)
  except ValueError as error:
    dot = "." if re.match(r"\w+=", str(error)) else ": "
    raise ValueError(f"{key}{dot}{error}") from error
  except TypeError as error:
    raise ValueError(f"{key}={settings!r} is not allowed: {error}.") from error


def image_counts(config: Any) -> None:
  """`data.num_train` and `data.num_test`: no more than the images there are."""
  for key, most in COUNTS.get(config.data.name, {}).items():
    at_most(config, f"data.{key}", most, f"of which {config.data.name} is made")


def image_sides(config: Any, key: str, side: int) -> None:
  """A number of pixels that divides the side of the images."""
  if side % value(config, key):
    checks.refuse(
      key, value(config, key), f"a divisor of {side}, the side of the images"
    )


def divides_mesh(
  config: Any, key: str, axes: Sequence[str] = ("data",), times: int = 1
) -> None:
  """A size that is spread over mesh axes is a multiple of their sizes.

  Args:
    config: with `mesh`; an axis of -1 counts as 1 here.
    key: dotted key of the size.
    axes: of the mesh.
    times: a factor besides, such as the clients of a chunk.
  """
  sizes = {a: config.mesh.get(a, 1) for a in axes}
  ways = times * math.prod(max(1, s) for s in sizes.values())
  if value(config, key) % ways:
    listed = " * ".join(f"mesh.{a}" for a in sizes)
    listed = f"{listed} * {times}" if times > 1 else listed
    checks.refuse(
      key, value(config, key), f"a multiple of {listed}, which is {ways}"
    )


def at_most(config: Any, key: str, most: float, why: str) -> None:
  """A number that another one bounds."""
  if value(config, key) > most:
    checks.refuse(key, value(config, key), f"at most {most}, {why}")
