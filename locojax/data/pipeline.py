"""From a source to batches: shuffle, repeat, map, batch, slice by process.

Every function for training returns `start -> iterator`: the iterator yields
batches `start, start + 1, ...`, and batch k is a function of (seed, k) alone,
so a run resumes by asking for its next batch. Starting late costs no reading
of the batches before.

The global batch k is cut into `process_count` blocks of rows, and process p
gets block p: put together in the order of processes, the rows are the same for
any number of processes.

Two ways give the same promises: `batches` reads any source example by example
(grain; threads and worker processes), `array_batches` gathers rows of arrays
that fit in memory, with no Python work per example. They shuffle differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from locojax.core import checks
from locojax.data import sources, stacking

Batch = dict[str, Any]
Batches = Callable[[int], Iterator[Batch]]

GRAIN_HELP = "the data pipeline needs grain: pip install 'locojax[experiments]'"
REMAINDERS = ("drop", "carry")
FULL = "full"  # the window of a shuffle over all rows
_MAX_SEED = 2**32 - 1
# Streams of random numbers that come from one seed.
_SHUFFLE, _MAP, _WINDOW = 0, 1, 2


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
  """Full batches in one pass over the examples, `floor(n / batch_size)`.

  Raises:
    ValueError: a batch is larger than the data set.
  """
  checks.positive_int("num_examples", num_examples)
  checks.positive_int("batch_size", batch_size)
  if batch_size > num_examples:
    raise ValueError(
      f"batch_size={batch_size} is not allowed: it must be at most the "
      f"number of examples, {num_examples} (or remainder='carry')."
    )
  return num_examples // batch_size


def _check_common(
  batch_size, seed, num_epochs, remainder, process_index, process_count
) -> None:
  checks.positive_int("batch_size", batch_size)
  checks.in_range("seed", seed, 0, _MAX_SEED)
  if num_epochs is not None:
    checks.positive_int("num_epochs", num_epochs)
  checks.one_of("remainder", remainder, REMAINDERS)
  _check_process(batch_size, process_index, process_count)


def _check_process(batch_size, process_index, process_count) -> None:
  checks.positive_int("process_count", process_count)
  checks.one_of("process_index", process_index, range(process_count))
  checks.divisible("batch_size", batch_size, "process_count", process_count)


def _check_start(start: int) -> int:
  checks.nonnegative("start", start)
  return int(start)


def epoch_permutation(num_examples: int, *, seed: int, epoch: int):
  """The order in which epoch `epoch` visits the rows, `[num_examples]` int64.

  `Generator(Philox(SeedSequence(seed, spawn_key=(0, epoch)))).permutation(n)`;
  the orders of two epochs, or of two seeds, are independent.
  """
  return _rng(seed, _SHUFFLE, epoch).permutation(num_examples)


def _check_window(window: float | str | None) -> float | None:
  """The window as a number; None for a full shuffle."""
  if window is None or (isinstance(window, str) and window == FULL):
    return None
  if isinstance(window, str):
    raise ValueError(
      f"window={window!r} is not allowed: it must be a number, 0 or more, or "
      f"{FULL!r} (or None) for a full shuffle."
    )
  return checks.nonnegative("window", window)


def windowed_permutation(
  num_examples: int, *, window: float | str | None, seed: int, epoch: int
) -> np.ndarray:
  """A local shuffle: rows sorted by `i + U(0, window)`, `[num_examples]` int64.

  Each row moves by less than `window` places, forward or back. So a stream of
  examples in the order of time stays nearly so.

  Args:
    num_examples: number of rows.
    window: 0 keeps the order; `'full'` or None gives `epoch_permutation`.
    seed, epoch: as for `epoch_permutation`; the draws U are the same for every
      window.

  Returns:
    The row numbers in their new order.

  Raises:
    ValueError: a window below 0.

  >>> windowed_permutation(4, window=0, seed=1, epoch=0).tolist()
  [0, 1, 2, 3]
  """
  window = _check_window(window)
  if window is None:
    return epoch_permutation(num_examples, seed=seed, epoch=epoch)
  rows = np.arange(num_examples)
  if window == 0:
    return rows
  draws = _rng(seed, _WINDOW, epoch).random(num_examples)
  return np.argsort(rows + window * draws, kind="stable")


def _rng(seed: int, stream: int, index: int) -> np.random.Generator:
  sequence = np.random.SeedSequence(seed, spawn_key=(stream, index))
  return np.random.Generator(np.random.Philox(sequence))


def index_batches(
  num_examples: int,
  *,
  batch_size: int,
  seed: int,
  shuffle: bool = True,
  window: float | str | None = None,
  num_epochs: int | None = None,
  remainder: str = "drop",
  process_index: int = 0,
  process_count: int = 1,
) -> Callable[[int], Iterator[np.ndarray]]:
  """Row numbers of the batches; for data that stays on the device.

  Args:
    num_examples: number of rows n.
    batch_size: rows of the global batch, over all processes.
    seed: of the shuffles, in [0, 2^32).
    shuffle: each epoch in the order of `epoch_permutation`; else in order.
    window: a number makes the shuffle local, by `windowed_permutation`; None
      or `'full'` shuffles over all rows. With a small window, `drop` leaves
      out nearly the same last rows in each epoch.
    num_epochs: the iterator ends after so many; None never ends.
    remainder: `drop`: an epoch has `floor(n / batch_size)` batches and the
      last `n mod batch_size` rows of its order are left out (others in each
      epoch; the same ones without shuffle). `carry`: no row is left out; a
      batch that an epoch cannot fill goes on with the next one. Only what the
      last epoch leaves is dropped.
    process_index: which block of each batch is wanted.
    process_count: number of blocks; it divides `batch_size`.

  Returns:
    `start -> iterator` of int64 `[batch_size / process_count]`.

  Raises:
    ValueError: on a bad argument; with `drop`, a batch larger than n; a
      window without shuffle.
  """
  _check_common(
    batch_size, seed, num_epochs, remainder, process_index, process_count
  )
  checks.positive_int("num_examples", num_examples)
  if _check_window(window) is not None and not shuffle:
    raise ValueError(f"window={window!r} is not allowed with shuffle=False.")
  epoch_rows = num_examples
  if remainder == "drop":
    epoch_rows = steps_per_epoch(num_examples, batch_size) * batch_size
  local = batch_size // process_count

  def order(epoch):
    if not shuffle:
      return np.arange(num_examples)
    return windowed_permutation(
      num_examples, window=window, seed=seed, epoch=epoch
    )

  def iterate(start):
    end = None if num_epochs is None else num_epochs * epoch_rows // batch_size
    cached_epoch, cached = None, None
    k = start
    while end is None or k < end:
      position = k * batch_size + process_index * local
      pieces, wanted = [], local
      while wanted:
        epoch, offset = divmod(position, epoch_rows)
        if epoch != cached_epoch:
          cached_epoch, cached = epoch, order(epoch)
        piece = cached[offset : min(offset + wanted, epoch_rows)]
        pieces.append(piece)
        position, wanted = position + len(piece), wanted - len(piece)
      yield pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
      k += 1

  return lambda start: iterate(_check_start(start))


def array_batches(
  arrays: Mapping[str, Any],
  *,
  batch_size: int,
  seed: int,
  shuffle: bool = True,
  window: float | str | None = None,
  num_epochs: int | None = None,
  remainder: str = "drop",
  map: Callable[[Batch], Batch] | None = None,
  random_map: Callable[[Batch, np.random.Generator], Batch] | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Batches:
  """Batches of rows of arrays in memory: one gather per array and batch.

  Args:
    arrays: a dict of arrays `[n, ...]`, or a source made by `from_arrays`.
    batch_size, seed, shuffle, window, num_epochs, remainder, process_index,
      process_count: as for `index_batches`.
    map: batch -> batch, row by row (scaling, types).
    random_map: (batch, rng) -> batch on the whole *global* batch before it is
      cut by process, so that the rows do not depend on the number of
      processes; `rng` is a function of (seed, k). Runs after `map`.

  Returns:
    `start -> iterator` of dicts of arrays `[batch_size / process_count, ...]`.

  Raises:
    ValueError: on a bad argument.
  """
  if not isinstance(arrays, sources.ArraySource):
    arrays = sources.from_arrays(arrays)
  whole = random_map is not None
  _check_process(batch_size, process_index, process_count)
  index = index_batches(
    len(arrays),
    batch_size=batch_size,
    seed=seed,
    shuffle=shuffle,
    window=window,
    num_epochs=num_epochs,
    remainder=remainder,
    process_index=0 if whole else process_index,
    process_count=1 if whole else process_count,
  )
  local = batch_size // process_count
  block = slice(process_index * local, (process_index + 1) * local)

  def iterate(start):
    for k, rows in enumerate(index(start), start=start):
      batch = {name: a[rows] for name, a in arrays.arrays.items()}
      batch = map(batch) if map else batch
      if whole:
        batch = random_map(batch, _rng(seed, _MAP, k))
        batch = {name: a[block] for name, a in batch.items()}
      yield batch

  return lambda start: iterate(_check_start(start))


def batches(
  source: sources.Source,
  *,
  batch_size: int,
  seed: int,
  shuffle: bool = True,
  num_epochs: int | None = None,
  remainder: str = "drop",
  map: Callable[[Any], Any] | None = None,
  random_map: Callable[[Any, np.random.Generator], Any] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 4,
  num_workers: int = 0,
) -> Batches:
  """Batches of any random-access source, read by grain.

  Args:
    source: see `sources.Source`.
    batch_size, seed, num_epochs, remainder, process_index, process_count: as
      for `index_batches`.
    shuffle: visit each epoch in a new order (grain's index shuffle: no table
      of the size of the data set); else in order.
    map: example -> example, not random.
    random_map: (example, rng) -> example, after `map`; `rng` is a function of
      (seed, position in the stream), whatever process or worker runs it.
    num_threads: threads that read batches ahead, 0 for none.
    num_workers: worker processes that read ahead, 0 for none; `source`, `map`
      and `random_map` must then be picklable. In a script the call must stand
      below `if __name__ == "__main__":`. Batches do not depend on it.

  Returns:
    `start -> iterator` of dicts of arrays `[batch_size / process_count, ...]`,
    stacked from the examples by the rule of `stacking`.

  Raises:
    ValueError: on a bad argument.
    ImportError: grain is not installed.
  """
  _check_common(
    batch_size, seed, num_epochs, remainder, process_index, process_count
  )
  checks.nonnegative("num_threads", num_threads)
  checks.nonnegative("num_workers", num_workers)
  data = _import_grain().MapDataset.source(sources.check(source)).seed(seed)
  data = data.shuffle() if shuffle else data
  if remainder == "drop":
    data = data[: steps_per_epoch(len(data), batch_size) * batch_size]
  data = data.repeat(num_epochs)
  data = data.map(map) if map else data
  data = data.random_map(random_map) if random_map else data
  data = data.batch(
    batch_size // process_count, drop_remainder=True, batch_fn=_stack
  )
  num_batches = len(data) // process_count
  data = data[process_index : num_batches * process_count : process_count]
  return lambda start: _read(
    data, _check_start(start), num_threads, num_workers
  )


def _import_grain():
  try:
    import grain
  except ImportError as e:
    raise ImportError(GRAIN_HELP) from e
  return grain


def _read(data, start: int, num_threads: int, num_workers: int):
  grain = _import_grain()
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=2 * num_threads
  )
  if start >= len(data):
    return iter(())
  data = data[start:].to_iter_dataset(options)
  if num_workers:
    _mark_flags_as_parsed()
    data = data.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=num_workers)
    )
  return iter(data)


def _mark_flags_as_parsed() -> None:
  """grain's workers read absl flags, which fails outside `absl.app`."""
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def padded_batches(
  source: sources.Source | Mapping[str, Any],
  batch_size: int,
  *,
  map: Callable[[Any], Any] | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """All examples once, in order, in batches of one shape: for evaluation.

  Args:
    source: a source, or a dict of arrays `[n, ...]` (fast).
    batch_size: rows of the global batch, over all processes.
    map: example -> example for a source; batch -> batch for arrays (and for a
      source made by `from_arrays`). Not random.
    process_index: which block of each batch is wanted.
    process_count: number of blocks; it divides `batch_size`.

  Returns:
    An iterator of `ceil(n / batch_size)` batches on every process, with
    leading size `batch_size / process_count` and a further `mask` float32
    `[rows]`: 1 for an example, 0 for a row of padding (zeros). The masks of
    all processes sum to n.

  Raises:
    ValueError: on a bad argument, if examples have a `mask` already, or if
      they have 64-bit integers that JAX would wrap.
  """
  checks.positive_int("batch_size", batch_size)
  _check_process(batch_size, process_index, process_count)
  if isinstance(source, Mapping):
    source = sources.from_arrays(source)
  read = _block_reader(sources.check(source), map)
  return _padded(
    read, len(source), batch_size, batch_size // process_count, process_index
  )


def _block_reader(source, f) -> Callable[[range], Batch]:
  if isinstance(source, sources.ArraySource):
    f = f or (lambda batch: batch)
    return lambda rows: f(
      {k: a[rows.start : rows.stop] for k, a in source.arrays.items()}
    )
  if f is not None:
    source = sources.mapped(source, f)
  return lambda rows: _stack([source[i] for i in rows])


def _stack(examples: Sequence[Any], name: str = "the value") -> Any:
  """Examples as a batch, by the rule of `stacking`."""
  if isinstance(examples[0], Mapping):
    return {k: _stack([e[k] for e in examples], repr(k)) for k in examples[0]}
  out = stacking.stack(name, examples)
  return np.array(list(examples)) if out.dtype == object else out


def _padded(read, num_examples, batch_size, local, process_index):
  for first in range(0, num_examples, batch_size):
    begin = first + process_index * local
    num = min(max(num_examples - begin, 0), local)
    # A process whose block is all padding still needs the shapes of a row.
    rows = range(begin, begin + num) if num else range(1)
    block = read(rows)
    if "mask" in block:
      raise ValueError(
        "the examples have the name 'mask' already, which padded_batches adds."
      )
    for name, value in block.items():
      _check_kept(name, value)
    block = {k: _pad(v, num, local) for k, v in block.items()}
    mask = np.arange(local) < num
    yield {**block, "mask": mask.astype(np.float32)}


def _check_kept(name: str, value: Any) -> None:
  """Refuses 64-bit integers that a jitted function would wrap."""
  if isinstance(value, Mapping):
    for k, v in value.items():
      _check_kept(f"{name}/{k}", v)
  elif value.dtype.itemsize == 8:
    checks.kept(name, value)


def _pad(value: Any, num: int, size: int) -> Any:
  if isinstance(value, Mapping):
    return {k: _pad(v, num, size) for k, v in value.items()}
  if num == size:
    return value
  out = np.zeros((size, *value.shape[1:]), value.dtype)
  out[:num] = value[:num]
  return out
