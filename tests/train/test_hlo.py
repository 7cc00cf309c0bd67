"""What is read from the text of a program: loops, sizes, operations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.train import collectives, hlo, operations

F32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)

# A windowed product: the counter starts at 1, the bound is an element of the
# state that stays, and a turn adds 2.
WINDOWED = """
%step (p0: u32[], p1: u32[]) -> u32[] {
  %p0 = u32[] parameter(0)
  %p1 = u32[] parameter(1)
  ROOT %sum = u32[] add(%p0, %p1)
}

%body (p: (u32[]{:T(128)}, bf16[8,4], u32[], u32[])) -> (u32[], bf16[8,4], u32[], u32[]) {
  %p = (u32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}, /*index=2*/u32[], u32[]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = bf16[8,4]{1,0} get-tuple-element(%p), index=1
  %n = u32[] get-tuple-element(%p), index=2
  %by = u32[] get-tuple-element(%p), index=3
  %cp = (bf16[8,4]{1,0:S(1)}, bf16[8,4]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %cd = bf16[8,4]{1,0} collective-permute-done(%cp)
  %next = u32[] fusion(%i, %by), kind=kLoop, calls=%step
  ROOT %t = (u32[], bf16[8,4], u32[], u32[]) tuple(%next, %cd, %n, %by)
}

%cond (p: (u32[], bf16[8,4], u32[], u32[])) -> pred[] {
  %p = (u32[], bf16[8,4]{1,0}, u32[], u32[]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %n = u32[] get-tuple-element(%p), index=2
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[8,4]) -> bf16[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %one = u32[] constant(1)
  %start = u32[] copy(%one)
  %two = u32[] constant(2)
  %end = u32[] constant(8)
  %first = (u32[], bf16[8,4], u32[], u32[]) tuple(%start, %a, %end, %two)
  %w = (u32[], bf16[8,4], u32[], u32[]) while(%first), condition=%cond, body=%body
  %r = bf16[64,4]{1,0} ragged-all-to-all(%a, %b, %c, %d, %e, %f), channel_id=2, replica_groups={{0,1}}
  %g = bf16[8,4]{1,0} all-gather(%a), channel_id=3, replica_groups={{0,1},{2,3}}, dimensions={0}
  %s = (bf16[8,4]{1,0}, u32[], token[]) send(%a, %z), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %o = bf16[8,4]{1,0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_a_windowed_loop_moves_its_counter_by_two():
  program = hlo.Program(WINDOWED)
  loop = program.computations["main"]["w"]
  assert program.trip_count("main", loop) == 4  # 1, 3, 5, 7
  assert program.places()["body"] == hlo.Place(4, True, True)
  assert program.places()["step"] == hlo.Place(4, True, True)
  longer = WINDOWED.replace("constant(8)", "constant(9)")
  again = hlo.Program(longer.replace("direction=LT", "direction=LE"))
  assert again.trip_count("main", again.computations["main"]["w"]) == 5
  unknown = hlo.Program(WINDOWED.replace("constant(8)", "parameter(1)"))
  loop = unknown.computations["main"]["w"]
  assert unknown.trip_count("main", loop) is None
  assert unknown.places()["body"] == hlo.Place(1, True, False)


def test_a_computation_that_is_called_twice_runs_twice():
  call = "  %x = u32[] fusion(%i, %by), kind=kLoop, calls=%step\n"
  text = WINDOWED.replace("  ROOT %t = (u32[]", f"{call}  ROOT %t = (u32[]")
  assert hlo.Program(text).places()["step"].runs == 8


def test_collectives_of_every_form():
  found = collectives.parse(WINDOWED, {"data": 4}, num_slices=2)
  by_kind = {c.kind: c for c in found}
  permute = by_kind["collective-permute"]
  assert (permute.bytes, permute.trips) == (64, 4)  # one of its two buffers
  assert permute.traffic == 4 * 64
  assert by_kind["ragged-all-to-all"].bytes == 512
  assert by_kind["all-gather"].axes == "groups of 2"
  between = by_kind["slice-transfer"]
  assert (between.bytes, between.group_size, between.traffic) == (64, 2, 64)
  text = collectives.table(found)
  assert "slice-transfer over slices (2 devices): 64 bytes" in text
  # Groups that name the devices of the first slice stand for those of both.
  own = WINDOWED.replace("{{0,1},{2,3}}", "{{0,1}}")
  mesh = {"slice": 2, "data": 2}
  found = collectives.parse(own, mesh, num_slices=2)
  assert {c.axes for c in found if c.kind == "all-gather"} == {"data"}


def test_types_are_read_with_their_brackets():
  types = "((f32[2]{0}, f32[3]), bf16[4,2]{1,0:T(8,128)(2,1)}, /*i=2*/pred[5])"
  parts = hlo.elements(types)
  assert parts == [
    "(f32[2]{0}, f32[3])",
    "bf16[4,2]{1,0:T(8,128)(2,1)}",
    "pred[5]",
  ]
  assert [hlo.num_bytes(p) for p in parts] == [20, 16, 5]
  assert hlo.elements("f32[2]{0}") == ["f32[2]{0}"]


def _layers(params, x):
  return jnp.sum(
    jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)[0]
  )


def test_operations_of_a_compiled_loop_are_those_written():
  args = F32(5, 8, 8), F32(16, 8)
  compiled = jax.jit(jax.value_and_grad(_layers, (0, 1))).lower(*args).compile()
  found = operations.count(compiled.as_text())
  assert found == operations.Operations(5 * 3 * 2 * 16 * 8 * 8)


def _convolution(labels, window, left, right, out):
  text = f"""
ENTRY %main (a: f32[1]) -> f32[1] {{
  %a = f32[{left}]{{0}} parameter(0)
  %b = f32[{right}]{{0}} parameter(1)
  ROOT %c = f32[{out}]{{0}} convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
"""  # noqa: E501
  return operations.count(text).total


def test_operations_of_convolutions():
  product = _convolution("bf_io->bf", "", "256,64", "64,32", "256,32")
  assert product == 2 * 256 * 64 * 32
  # 3 x 3 over 5 x 5, padded by 1: of 15 positions an axis 13 are inside.
  window = "size=3x3 pad=1_1x1_1"
  image = _convolution(
    "b01f_01io->b01f", window, "2,5,5,4", "3,3,4,6", "2,5,5,6"
  )
  assert image == 2 * 2 * 6 * 4 * 13 * 13
  # A batch of 7 products is written as an axis that meets itself alone.
  window = "size=7 stride=6 pad=0_0 lhs_dilate=7"
  batch = _convolution("0bf_0io->0bf", window, "7,8,4", "7,4,6", "7,8,6")
  assert batch == 7 * 2 * 8 * 4 * 6


@pytest.mark.parametrize(("stride", "pad"), [(1, 1), (2, 0), (3, 2)])
def test_operations_of_convolutions_by_brute_force(stride, pad):
  size, kernel = 9, 4
  out = (size + 2 * pad - kernel) // stride + 1
  places = np.arange(out)[:, None] * stride + np.arange(kernel) - pad
  inside = int(((places >= 0) & (places < size)).sum())
  window = f"size={kernel} stride={stride} pad={pad}_{pad}"
  found = _convolution(
    "b0f_0io->b0f", window, f"1,{size},2", f"{kernel},2,3", f"1,{out},3"
  )
  assert found == 2 * 2 * 3 * inside


def test_kernels_are_counted_apart():
  target = 'custom_call_target="tpu_custom_call"'
  call = f"  %k = bf16[8,4]{{1,0}} custom-call(%x), {target}\n"
  text = WINDOWED.replace("  %cd = ", f"{call}  %cd = ")
  assert operations.count(text) == operations.Operations(0, kernels=4)
