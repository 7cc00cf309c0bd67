"""What kind an error is, by each engine's names for it.

A call that fits no overload is of kind 'type': it may be the number or the
types. Names that are not here are of kind 'other'.
"""

from __future__ import annotations

import re

from locojax.engines.types import ARITY, OTHER, REFERENCE, SYNTAX, TYPE

Version = tuple[int, ...]

TY = {
  "invalid-syntax": SYNTAX,
  "invalid-syntax-in-forward-annotation": SYNTAX,
  "import-not-found": REFERENCE,
  "missing-attribute": REFERENCE,
  "missing-module-member": REFERENCE,
  "missing-union-attribute": REFERENCE,
  "unresolved-global": REFERENCE,
  "unresolved-reference": REFERENCE,
  "missing-argument": ARITY,
  "parameter-already-assigned": ARITY,
  "positional-only-parameter-as-kwarg": ARITY,
  "too-many-positional-arguments": ARITY,
  "unknown-argument": ARITY,
  "invalid-argument-type": TYPE,
  "invalid-assignment": TYPE,
  "invalid-await": TYPE,
  "invalid-context-manager": TYPE,
  "invalid-explicit-return": TYPE,
  "invalid-implicit-return": TYPE,
  "invalid-parameter-default": TYPE,
  "invalid-raise": TYPE,
  "invalid-typed-dict-key": TYPE,
  "invalid-yield": TYPE,
  "no-matching-overload": TYPE,
  "not-callable": TYPE,
  "not-iterable": TYPE,
  "not-subscriptable": TYPE,
  "unsupported-bool-conversion": TYPE,
  "unsupported-operator": TYPE,
}
# Rules of ty before 0.0.108 (seen in 0.0.50), and what they are called since.
TY_RENAMED_IN = (0, 0, 108)
TY_BEFORE = {
  "call-non-callable": "not-callable",
  "invalid-key": "invalid-typed-dict-key",
  "invalid-return-type": "invalid-explicit-return",
  "unresolved-attribute": "missing-attribute",
  "unresolved-import": "import-not-found",
}


def ty(code: str, message: str, version: Version) -> str:
  """By rule; rules have other names in other versions."""
  if version < TY_RENAMED_IN:
    code = TY_BEFORE.get(code, code)
  return TY.get(code, OTHER)


PYREFLY = {
  "parse-error": SYNTAX,
  "invalid-syntax": SYNTAX,
  "missing-attribute": REFERENCE,
  "missing-import": REFERENCE,
  "missing-module-attribute": REFERENCE,
  "unknown-name": REFERENCE,
  "bad-argument-count": ARITY,
  "bad-keyword-argument": ARITY,
  "missing-argument": ARITY,
  "unexpected-keyword": ARITY,
  "bad-argument-type": TYPE,
  "bad-assignment": TYPE,
  "bad-index": TYPE,
  "bad-return": TYPE,
  "no-matching-overload": TYPE,
  "not-callable": TYPE,
  "not-iterable": TYPE,
  "unsupported-operation": TYPE,
}


def pyrefly(code: str, message: str, version: Version) -> str:
  return PYREFLY.get(code, OTHER)


PYRIGHT = {
  "": SYNTAX,
  "reportAttributeAccessIssue": REFERENCE,
  "reportMissingImports": REFERENCE,
  "reportUndefinedVariable": REFERENCE,
  "reportArgumentType": TYPE,
  "reportAssignmentType": TYPE,
  "reportCallIssue": TYPE,
  "reportGeneralTypeIssues": TYPE,
  "reportIndexIssue": TYPE,
  "reportOperatorIssue": TYPE,
  "reportReturnType": TYPE,
}
_PYRIGHT_ARITY = re.compile(
  r"^(Expected \d+ |Arguments? missing|No parameter named|Multiple parameters)"
)


def pyright(code: str, message: str, version: Version) -> str:
  """By rule; what is wrong with a call is in the message alone."""
  if code == "reportCallIssue" and _PYRIGHT_ARITY.match(message):
    return ARITY
  return PYRIGHT.get(code, OTHER)


_TSC = {
  REFERENCE: "2304 2305 2307 2318 2339 2503 2551 2552 2580 2582 2583 2584 2591 "
  "2592 2593 2614 2663 2693 2694 2702 2708 2724 2749 2792 18004",
  ARITY: "2554 2555 2556 2557 2558 2575 2743 2794",
  TYPE: "2322 2344 2345 2347 2348 2349 2351 2352 2353 2355 2356 2362 2363 2365 "
  "2367 2411 2416 2420 2488 2559 2560 2561 2571 2635 2739 2740 2741 2769 "
  "2820 7053 18046 18047 18048",
}
TSC = {int(n): kind for kind, text in _TSC.items() for n in text.split()}


def tsc(code: str, message: str, version: Version) -> str:
  """By number: those from 1000 to 1999 are of syntax.

  An unknown name is 2552 where a similar one exists, else 2304, or 2591 where
  it is one of Node.
  """
  number = int(code) if code.isdigit() else 0
  return SYNTAX if 1000 <= number < 2000 else TSC.get(number, OTHER)


# golang.org/x/tools/internal/typesinternal, ErrorCode.
_GOPLS = {
  REFERENCE: "UndeclaredName MissingFieldOrMethod UndeclaredImportedName "
  "UnexportedName BrokenImport MissingLitField UndeclaredLabel",
  ARITY: "WrongArgCount WrongResultCount WrongAssignCount WrongTypeArgCount",
  TYPE: "IncompatibleAssign MismatchedTypes InvalidCall InvalidConversion "
  "InvalidIfaceAssign InvalidIndex InvalidReceive InvalidSend InvalidRange "
  "NonIndexableOperand NonSliceableOperand UndefinedOp InvalidAssert "
  "ImpossibleAssert TruncatedFloat NumericOverflow InvalidUntypedConversion "
  "NotAType NotAnExpr InvalidIndirection AssignmentMismatch InvalidCond",
}
GOPLS = {name: kind for kind, text in _GOPLS.items() for name in text.split()}


def gopls(code: str, message: str, version: Version) -> str:
  """By name; errors of syntax have none."""
  return GOPLS.get(code, OTHER) if code else SYNTAX


# Clang's diagnostics without their `err_`.
_CLANGD = {
  REFERENCE: "undeclared_var_use undeclared_var_use_suggest no_member "
  "no_member_suggest no_member_overloaded_arrow pp_file_not_found "
  "unknown_typename unknown_typename_suggest typename_nested_not_found "
  "undeclared_use undeclared_use_suggest unknown_nested_typename_suggest "
  "undeclared_label_use no_template no_template_suggest "
  "typecheck_member_reference_suggestion incomplete_type",
  TYPE: "typecheck_convert_incompatible init_conversion_failed "
  "typecheck_call_not_function typecheck_invalid_operands "
  "ovl_no_viable_function_in_call ovl_no_viable_member_function_in_call "
  "ovl_no_viable_function_in_init ovl_no_viable_object_call "
  "ovl_no_viable_oper ovl_no_viable_subscript ovl_ambiguous_call "
  "ovl_no_conversion_in_cast ovl_no_viable_conversion_in_cast "
  "typecheck_nonviable_condition "
  "typecheck_subscript_value typecheck_indirection_requires_pointer "
  "typecheck_member_reference_arrow typecheck_member_reference_struct_union "
  "typecheck_bool_condition bad_cxx_cast_generic "
  "lvalue_reference_bind_to_temporary "
  "lvalue_reference_bind_to_unrelated reference_bind_drops_quals",
  ARITY: "typecheck_call_too_few_args typecheck_call_too_many_args "
  "typecheck_call_too_few_args_one typecheck_call_too_many_args_one "
  "typecheck_call_too_few_args_at_least typecheck_call_too_many_args_at_most "
  "init_list_too_many excess_initializers",
}
CLANGD = {name: kind for kind, text in _CLANGD.items() for name in text.split()}
_CANDIDATE = re.compile(r"candidate .*not viable: (.*)")
_CLANGD_ARITY = re.compile(r"(requires|expects) .*argument|has no parameters")


def clangd(code: str, message: str, version: Version) -> str:
  """By name; why no function is viable is in the notes of each candidate.

  The number is wrong if that is what every candidate is refused for.
  """
  if code.startswith("ovl_no_viable"):
    reasons = _CANDIDATE.findall(message)
    if reasons and all(map(_CLANGD_ARITY.search, reasons)):
      return ARITY
  if code.startswith("expected") or code.startswith("extraneous"):
    return SYNTAX
  return CLANGD.get(code, OTHER)


_BUF = (
  (SYNTAX, r"^(unexpected|missing|unterminated|unrecognized|invalid)\b"),
  (REFERENCE, r"^cannot find|^imported file does not exist|^cannot resolve"),
  (ARITY, r"^expected exactly one .* got \d+"),
  (TYPE, r"^mismatched types|^expected .* (type|found)"),
)


def buf(code: str, message: str, version: Version) -> str:
  """By message: its errors have no codes."""
  for kind, pattern in _BUF:
    if re.search(pattern, message):
      return kind
  return OTHER


# com.sun.tools.javac.resources.compiler, without `compiler.err.`.
_JAVAC = {
  REFERENCE: "cant.resolve cant.resolve.location cant.resolve.location.args "
  "cant.resolve.args cant.resolve.args.params doesnt.exist "
  "cant.resolve.location.args.params not.def.public.cant.access "
  "not.def.access.class.intf.cant.access report.access",
  TYPE: "cant.apply.symbols prob.found.req incompatible.types "
  "operator.cant.be.applied operator.cant.be.applied.1 "
  "incomparable.types array.req.but.found foreach.not.applicable.to.type "
  "unexpected.type incompatible.ret.type.in.lambda "
  "cant.deref",
}
JAVAC = {name: kind for kind, text in _JAVAC.items() for name in text.split()}
_JAVAC_SYNTAX = re.compile(
  r"^(expected\d?|illegal|not\.stmt|premature\.eof|unclosed|class\.public|"
  r"orphaned|else\.without|catch\.without|missing\.ret\.stmt\.never|"
  r"invalid\.meth\.decl|variable\.not\.allowed)"
)


def javac(code: str, message: str, version: Version) -> str:
  """By key; `cant.apply.symbol` tells in its message what does not fit."""
  name = code.removeprefix("compiler.err.")
  if name == "cant.apply.symbol":
    return ARITY if "differ in length" in message else TYPE
  if _JAVAC_SYNTAX.match(name):
    return SYNTAX
  return JAVAC.get(name, OTHER)
