"""A correct program for each language, and errors to put into it.

Each error replaces one piece of the program, and says what kind it is. What
stands under `hidden` is wrong as well, and known to be seen by nobody.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Sample:
  """A program.

  Attributes:
    file: its name.
    text: a program without errors.
    errors: name -> kind, piece of the text, what replaces it.
    hidden: the same, in code that engines do not look at.
    files: other files that the engine needs, by name.
    member: a piece of the text, how much of it is typed, and a name that may
      stand there then.
  """

  file: str
  text: str
  errors: Mapping[str, tuple[str, str, str]]
  hidden: Mapping[str, tuple[str, str, str]] = dataclasses.field(
    default_factory=dict
  )
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  member: tuple[str, str, str] = ("a.val", "a.", "val")


def _calls(call: str, good: str, bad: str) -> dict[str, tuple[str, str, str]]:
  """The errors that all languages with calls share.

  Args:
    call: `f({}, {})` as it is written.
    good: its arguments, joined by a comma.
    bad: an argument of another type.
  """
  first = good.split(",")[0]
  whole = call.format(good)
  return {
    "unknown_name": ("reference", whole, "g" + whole),
    "unknown_member": ("reference", "a.val", "a.vall_"),
    "too_few": ("arity", whole, call.format(first)),
    "too_many": ("arity", whole, call.format(f"{good}, {first}")),
    "argument_type": ("type", whole, call.format(f"{first}, {bad}")),
    "syntax": ("syntax", whole, whole[:-1]),
  }


_PYTHON = Sample(
  "sample.py",
  """import functools
import sys


class A:
  val: int = 0


def f(x: int, y: int) -> int:
  return x + y


@functools.lru_cache
def cached(x: int) -> int:
  return x


def main() -> int:
  a = A()
  b: int = f(1, 2)
  c = cached(1)
  if sys.platform == "win32":
    return b
  return a.val + b + c


def after(b):
  return b
  print(b)
""",
  {
    **_calls("f({})", "1, 2", '"z"'),
    "assignment": ("type", "b: int = f(1, 2)", 'b: int = "z"'),
    "returned": ("type", "return x + y", 'return "z"'),
    "unknown_module": ("reference", "import functools", "import functoolz_"),
  },
  {
    "after_return": ("reference", "print(b)", "print(bb_)"),
    "other_platform": ("reference", "    return b\n", "    return bb_\n"),
    "cached_arity": ("arity", "cached(1)", "cached(1, 2)"),
  },
)

_TYPESCRIPT = Sample(
  "sample.ts",
  """class A { val: number = 0; }
function f(x: number, y: number): number {
  return x + y;
}
export function main(): number {
  const a = new A();
  const b: number = f(1, 2);
  return a.val + b;
}
""",
  {
    **_calls("f({})", "1, 2", '"z"'),
    "assignment": ("type", "= f(1, 2)", '= "z"'),
    "returned": ("type", "return x + y", 'return "z"'),
    "similar_name": ("reference", "= f(1, 2)", "= parseInnt(1)"),
  },
  files={"tsconfig.json": '{"compilerOptions": {"strict": true}}\n'},
)

_GO = Sample(
  "main.go",
  """package main

type A struct{ val int }

func f(x int, y int) int {
	return x + y
}

func main() {
	a := A{}
	var b int = f(1, 2)
	println(a.val + b)
}
""",
  {
    **_calls("f({})", "1, 2", '"z"'),
    "assignment": ("type", "= f(1, 2)", '= "z"'),
    "returned": ("type", "return x + y", 'return "z"'),
  },
  files={"go.mod": "module example.com/sample\n\ngo 1.19\n"},
)

_CPP = Sample(
  "sample.cpp",
  """#include <vector>
struct A { int val = 0; };
int f(int x, int y) { return x + y; }
int main() {
  A a;
  std::vector<int> v;
  v.push_back(1);
  int b = f(1, 2);
#if 0
  b = 3;
#endif
  return a.val + b;
}
""",
  {
    **_calls("f({})", "1, 2", '"z"'),
    "assignment": ("type", "= f(1, 2)", '= "z"'),
    "returned": ("type", "return x + y", 'return "z"'),
    "library_member": ("reference", "v.push_back(1)", "v.push_bakk(1)"),
  },
  {"not_compiled": ("reference", "  b = 3;", "  bb_ = 3;")},
)

_JAVA = Sample(
  "Sample.java",
  """import java.util.List;

class Sample {
  static class A { int val = 0; }
  static int f(int x, int y) { return x + y; }
  static int main(List<String> names) {
    A a = new A();
    int b = f(1, 2);
    return a.val + b + names.size();
  }
}
""",
  {
    **_calls("f({})", "1, 2", '"z"'),
    "assignment": ("type", "= f(1, 2)", '= "z"'),
    "returned": ("type", "return x + y", 'return "z"'),
    "library_member": ("reference", "names.size()", "names.sise()"),
  },
)

_PROTO = Sample(
  "sample.proto",
  """syntax = "proto2";
package a.b;
message A {
  optional int32 val = 1 [default = 3];
}
message B {
  optional A a = 1;
}
service S {
  rpc M(A) returns (B);
}
""",
  {
    "unknown_name": ("reference", "optional A a", "optional AA a"),
    "unknown_import": (
      "reference",
      "message A {",
      'import "q.proto";\nmessage A {',
    ),
    "too_many": ("arity", "M(A)", "M(A, A)"),
    "argument_type": ("type", "default = 3", 'default = "z"'),
    "syntax": ("syntax", "val = 1", "val 1"),
  },
  member=("optional A a", "opt", "optional"),
)

_KOTLIN = Sample(
  "sample.kt",
  """class A { val v: Int = 0 }
fun f(x: Int, y: Int): Int { return x + y }
fun main() {
  val a = A()
  val b: Int = f(1, 2)
  println(a.v + b)
}
""",
  {
    "unknown_name": ("reference", "f(1, 2)", "ff(1, 2)"),
    "too_few": ("arity", "f(1, 2)", "f(1)"),
    "argument_type": ("type", "f(1, 2)", 'f(1, "z")'),
    "syntax": ("syntax", "f(1, 2)", "f(1, 2"),
  },
  member=("println", "ma", "main"),
)

_DART = Sample(
  "sample.dart",
  """class A { int v = 0; }
int f(int x, int y) { return x + y; }
void main() {
  var a = A();
  int b = f(1, 2);
  print(a.v + b);
}
""",
  {
    "unknown_name": ("reference", "f(1, 2)", "ff(1, 2)"),
    "too_few": ("arity", "f(1, 2)", "f(1)"),
    "argument_type": ("type", "f(1, 2)", 'f(1, "z")'),
    "syntax": ("syntax", "f(1, 2)", "f(1, 2"),
  },
  member=("print", "ma", "main"),
)

SAMPLES = {
  "python": _PYTHON,
  "typescript": _TYPESCRIPT,
  "go": _GO,
  "cpp": _CPP,
  "java": _JAVA,
  "proto": _PROTO,
  "kotlin": _KOTLIN,
  "dart": _DART,
}
# What an engine needs in its folder besides.
FILES = {"pyrefly": {"pyrefly.toml": ""}}
