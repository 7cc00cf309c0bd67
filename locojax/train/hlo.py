"""Reads the text of a compiled program: instructions, loops, how often all run.

Only what accounting needs. The format is that of `compiled.as_text()`: one
instruction a line, `name = type opcode(operands), attributes`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_HEAD = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALL = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)"
  r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"index=(\d+)")
# What hands a scalar on as it is.
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    name: unique within its computation.
    types: text of the type of its result.
    opcode: such as `fusion`.
    operands: names of its operands, those that have one.
    inside: the text between the brackets of the operands.
    attributes: the rest of the line.
    is_root: whether it is the result of its computation.
  """

  name: str
  types: str
  opcode: str
  operands: tuple[str, ...]
  inside: str
  attributes: str
  is_root: bool

  def attribute(self, name: str) -> str | None:
    """`{...}` or the word behind `name=`; None without it."""
    match = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
    return match[1] if match else None

  @property
  def callees(self) -> list[str]:
    """Names of the computations that it calls."""
    names = _CALL.findall(self.attributes)
    for group in _BRANCHES.findall(self.attributes):
      names += [n.strip().lstrip("%") for n in group.split(",")]
    return names


@dataclasses.dataclass(frozen=True)
class Place:
  """How often a computation runs in one run of the program.

  Attributes:
    runs: number of times; loops of unknown length count once.
    in_loop: whether a loop is around it.
    known: whether the lengths of all loops around it are known.
  """

  runs: int
  in_loop: bool
  known: bool


Computation = Mapping[str, Instruction]


def _closing(text: str, start: int) -> int:
  """Index of the bracket that closes the one at `start`."""
  depth = 0
  for at in range(start, len(text)):
    if text[at] == "(":
      depth += 1
    elif text[at] == ")":
      depth -= 1
      if not depth:
        return at
  return len(text) - 1


def _instruction(line: str) -> Instruction | None:
  head = _HEAD.match(line)
  if not head:
    return None
  start = head.end()
  after = _closing(line, start) + 1 if line[start : start + 1] == "(" else start
  opcode = _OPCODE.search(line, after)
  if not opcode:
    return None
  end = _closing(line, opcode.end() - 1)
  inside = line[opcode.end() : end]
  return Instruction(
    name=head[2],
    types=line[start : opcode.start()],
    opcode=opcode[1],
    operands=tuple(_NAME.findall(inside)),
    inside=inside,
    attributes=line[end + 1 :],
    is_root=bool(head[1]),
  )


def shapes(types: str) -> list[tuple[str, tuple[int, ...]]]:
  """`[(dtype, dimensions)]` of the arrays in the text of a type.

  >>> shapes("(f32[2,3]{1,0}, pred[])")
  [('f32', (2, 3)), ('pred', ())]
  """
  return [
    (dtype, tuple(int(n) for n in dims.split(",") if n))
    for dtype, dims in _SHAPE.findall(types)
  ]


def num_bytes(types: str) -> int:
  """Size of all arrays in the text of a type."""
  total = 0
  for dtype, dims in shapes(types):
    width = re.search(r"\d+", dtype)
    bits = int(width[0]) if width else 8  # pred has no width
    total += math.prod(dims) * bits // 8
  return total


def elements(types: str) -> list[str]:
  """The elements of a tuple type, or the type itself.

  >>> elements("((f32[2]), f32[4]{0:T(8,128)}, u32[])")
  ['(f32[2])', 'f32[4]{0:T(8,128)}', 'u32[]']
  """
  text = types.strip()
  if not text.startswith("("):
    return [text]
  text = re.sub(r"/\*.*?\*/", "", text[1:-1])
  parts, depth, start = [], 0, 0
  for at, char in enumerate(text):
    depth += (char in "([{") - (char in ")]}")
    if char == "," and not depth:
      parts.append(text[start:at].strip())
      start = at + 1
  last = text[start:].strip()
  return [*parts, last] if last else parts


class Program:
  """A compiled program.

  Args:
    text: `compiled.as_text()`.

  Attributes:
    computations: instructions by name, by the name of their computation.
    entry: name of the computation that is run.
  """

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry = ""
    lines: dict[str, Instruction] = {}
    for line in text.splitlines():
      header = _HEADER.match(line)
      if header:
        lines = self.computations.setdefault(header[2], {})
        self.entry = header[2] if header[1] else self.entry
        continue
      found = _instruction(line) if line.startswith(" ") else None
      if found is not None:
        # Texts written by hand may repeat a name.
        name = found.name
        while name in lines:
          name += "'"
        lines[name] = found

  def root(self, computation: str) -> Instruction | None:
    """The result of a computation."""
    lines = self.computations.get(computation, {})
    return next((i for i in lines.values() if i.is_root), None)

  def trip_count(self, computation: str, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None if it is not told.

    XLA's own note, or what the counter that the condition compares starts at,
    ends at and is moved by: the loops of windowed products move it by 2.

    Args:
      computation: where the loop is.
      loop: a `while`.
    """
    known = _KNOWN_TRIPS.search(loop.attributes)
    if known:
      return int(known[1])
    return _Counter(self, computation, loop).trips()

  def places(self) -> dict[str, Place]:
    """How often each computation runs, those that never do left out."""
    edges: dict[str, list[tuple[str, int, bool, bool]]] = {}
    for name, lines in self.computations.items():
      edges[name] = list(self._edges(name, lines))
    found = {self.entry: Place(1, False, True)}
    for name in self._ordered(edges):
      place = found.get(name)
      if place is None:
        continue
      for callee, trips, is_loop, known in edges[name]:
        old = found.get(callee, Place(0, False, True))
        found[callee] = Place(
          old.runs + place.runs * trips,
          old.in_loop or place.in_loop or is_loop,
          old.known and place.known and known,
        )
    return {n: p for n, p in found.items() if n in self.computations}

  def _edges(self, name: str, lines: Computation) -> Iterator[tuple]:
    for one in lines.values():
      trips, known, is_loop = 1, True, one.opcode == "while"
      if is_loop:
        found = self.trip_count(name, one)
        trips, known = (1, False) if found is None else (found, True)
      for callee in one.callees:
        yield callee, trips, is_loop, known

  def _ordered(self, edges) -> list[str]:
    """Callers before callees."""
    out: list[str] = []
    seen: set[str] = set()
    stack: list[tuple[str, bool]] = [(self.entry, False)]
    while stack:
      name, done = stack.pop()
      if done:
        out.append(name)
      elif name not in seen:
        seen.add(name)
        stack.append((name, True))
        stack += [(e[0], False) for e in edges.get(name, ())]
    return [n for n in reversed(out) if n in edges]


class _Counter:
  """The counter of a loop: where it starts, ends, and what it is moved by."""

  def __init__(self, program: Program, computation: str, loop: Instruction):
    self._program, self._computation, self._loop = program, computation, loop
    name = lambda key: (loop.attribute(key) or "").lstrip("%")
    self._condition, self._body = name("condition"), name("body")

  def trips(self) -> int | None:
    """The number of turns, or None."""
    compare = self._program.root(self._condition)
    lines = self._lines(self._condition)
    names = list(compare.operands) if compare is not None else []
    if compare is not None and compare.opcode == "fusion":
      inner = self._program.root(compare.callees[0])
      if inner is None or inner.opcode != "compare":
        return None
      given = self._given(compare.callees[0], compare)
      names = [given.get(o, o) for o in inner.operands]
      constants = self._lines(compare.callees[0])
      lines, compare = {**constants, **lines}, inner
    if compare is None or compare.opcode != "compare":
      return None
    return self._between(compare.attribute("direction"), lines, names)

  def _between(self, direction, lines, names) -> int | None:
    if direction in ("GT", "GE"):
      direction = {"GT": "LT", "GE": "LE"}[direction]
      names = names[::-1]
    if direction not in ("LT", "LE") or len(names) != 2:
      return None
    end = self._constant(lines, names[1], self._condition)
    if end is None:
      return self._only_constant(lines, direction)
    index = self._index(lines, names[0])
    start, by = 0, 1
    if index is not None:
      start = self._start(index) or 0
      by = self._step(index) or 1
    length = end - start + (direction == "LE")
    return max(0, -(-length // by))

  def _only_constant(self, lines, direction) -> int | None:
    """The bound where the counter cannot be followed: the only constant."""
    found = [_literal(i) for i in lines.values() if i.opcode == "constant"]
    found = [n for n in found if n is not None]
    if len(found) != 1 or direction != "LT":
      return None
    return found[0]

  def _lines(self, computation: str) -> Computation:
    return self._program.computations.get(computation, {})

  def _given(self, callee: str, call: Instruction) -> dict[str, str]:
    """Name of an operand by the name of the parameter it becomes."""
    out = {}
    for one in self._lines(callee).values():
      if one.opcode == "parameter" and one.inside.isdigit():
        at = int(one.inside)
        if at < len(call.operands):
          out[one.name] = call.operands[at]
    return out

  def _index(self, lines: Computation, name: str) -> int | None:
    """Which element of the loop's state a name is."""
    one = lines.get(name)
    if one is None:
      return None
    if one.opcode in _SAME and one.operands:
      return self._index(lines, one.operands[0])
    if one.opcode != "get-tuple-element":
      return None
    of = lines.get(one.operands[0]) if one.operands else None
    match = _INDEX.search(one.attributes)
    is_state = of is not None and of.opcode == "parameter"
    return int(match[1]) if match and is_state else None

  def _constant(self, lines, name: str, where: str) -> int | None:
    """The value of a scalar that does not change."""
    one = lines.get(name)
    if one is None:
      return None
    if one.opcode == "constant":
      return _literal(one)
    if one.opcode in _SAME and one.operands:
      return self._constant(lines, one.operands[0], where)
    index = self._index(lines, name)
    in_loop = where in (self._condition, self._body)
    if index is None or not in_loop or not self._is_kept(index):
      return None
    return self._start(index)

  def _is_kept(self, index: int) -> bool:
    """Whether the body hands an element of the state on as it is."""
    lines, root = self._lines(self._body), self._program.root(self._body)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
      return False
    return self._index(lines, root.operands[index]) == index

  def _start(self, index: int) -> int | None:
    """What an element of the state is before the first turn."""
    lines = self._lines(self._computation)
    first = lines.get(self._loop.operands[0]) if self._loop.operands else None
    if first is None or first.opcode != "tuple":
      return None
    if index >= len(first.operands):
      return None
    return self._constant(lines, first.operands[index], self._computation)

  def _step(self, index: int) -> int | None:
    """What a turn adds to an element of the state."""
    lines, root = self._lines(self._body), self._program.root(self._body)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
      return None
    one = lines.get(root.operands[index])
    while one is not None and one.opcode in _SAME and one.operands:
      one = lines.get(one.operands[0])
    if one is None:
      return None
    names = list(one.operands)
    if one.opcode == "fusion" and one.callees:
      inner = self._program.root(one.callees[0])
      if inner is None:
        return None
      given = self._given(one.callees[0], one)
      names = [given.get(o, o) for o in inner.operands]
      lines, one = {**self._lines(one.callees[0]), **lines}, inner
    if one.opcode != "add" or len(names) != 2:
      return None
    values = [self._constant(lines, n, self._body) for n in names]
    own = [self._index(lines, n) == index for n in names]
    by = [v for v, is_own in zip(values, own, strict=True) if not is_own]
    return by[0] if len(by) == 1 and by[0] else None


def _literal(one: Instruction) -> int | None:
  text = one.inside.strip()
  return int(text) if re.fullmatch(r"-?\d+", text) else None
