"""Activations: worked numbers, identities, derivatives, limits, names."""

from __future__ import annotations

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods.locoprop import matching
from locojax.methods.smelu import activations, modules

X = np.array([-2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2])
GSMELU = dict(
  negative_slope=0.1, positive_slope=1.0, alpha=0.5, beta=1.5, offset=-0.05
)
KERNELS = activations.KERNELS
DTYPES = ("float16", "bfloat16", "float32", "float64")
SMOOTH = [n for n in activations.activation_names() if n not in ("selu", "elu")]
NUMBERED = [
  "smelu:0.5",
  "gsmelu:0.5",
  "swish:2",
  "gelu:2",
  "gelu_tanh:2",
  "softplus:2",
  "squareplus:2",
  *(f"rescu_{kernel}:0.5" for kernel in KERNELS),
]

# One of each kind of formula.
CORES = ("smelu:0.5", "gsmelu:0.5", "rescu_gaussian:0.5", "gelu:2", "tanhexp")


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@functools.partial(jax.jit, static_argnums=0)
def _value_and_slope(fn, x):
  return fn(x), jax.vmap(jax.grad(fn))(x)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(fn, x):
  return jax.vmap(jax.grad(fn))(x)


@functools.partial(jax.jit, static_argnums=0)
def _curvatures(fn, x):
  return jax.vmap(jax.grad(jax.grad(fn)))(x)


def _slope(fn, x):
  """The derivative at each entry of a vector."""
  return _slopes(fn, jnp.asarray(x))


def _curvature(fn, x):
  """The second derivative at each entry of a vector."""
  return _curvatures(fn, jnp.asarray(x))


def _close(a, b, tolerance=1e-12):
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def _gauss(low, high, num=60):
  """Nodes and weights of Gauss-Legendre quadrature."""
  nodes, weights = np.polynomial.legendre.leggauss(num)
  return (nodes + 1) * (high - low) / 2 + low, weights * (high - low) / 2


WORKED = [
  (
    0.5,
    [0, 0, 0, 0.08, 0.125, 0.18, 0.5, 1, 2],
    [0, 0, 0, 0.4, 0.5, 0.6, 1, 1, 1],
  ),
  (
    1.0,
    [0, 0, 0.0625, 0.2025, 0.25, 0.3025, 0.5625, 1, 2],
    [0, 0, 0.25, 0.45, 0.5, 0.55, 0.75, 1, 1],
  ),
  (
    2.0,
    [0, 0.125, 0.28125, 0.45125, 0.5, 0.55125, 0.78125, 1.125, 2],
    [0, 0.25, 0.375, 0.475, 0.5, 0.525, 0.625, 0.75, 1],
  ),
]


@pytest.mark.parametrize(("beta", "y", "slope"), WORKED)
def test_smelu_worked_numbers(x64, beta, y, slope):
  fn = functools.partial(activations.smelu, beta=beta)
  _close(fn(X), y)
  _close(_slope(fn, X), slope)


def test_gsmelu_worked_numbers(x64):
  y = [-0.2, -0.1, -0.05, 0.026, 0.05625, 0.091, 0.275, 0.60625, 1.55]
  _close(activations.gsmelu(X, **GSMELU), y)
  fn = functools.partial(activations.gsmelu, **GSMELU)
  _close(_curvature(fn, jnp.array([0.0])) / 2, [0.225])
  _close(jax.grad(fn)(0.0), 0.325)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.1, 7.0, 1e3])
def test_joints_are_exact(x64, dtype, beta):
  beta = float(jnp.asarray(beta, dtype))
  for fn in (
    functools.partial(activations.smelu, beta=beta),
    functools.partial(activations.gsmelu, alpha=beta, beta=beta),
  ):
    joints = jnp.array([-2 * beta, -beta, beta, 2 * beta], dtype)
    y, slope = _value_and_slope(fn, joints)
    assert y.dtype == slope.dtype == joints.dtype
    assert y.tolist() == [0, 0, beta, float(joints[3])]
    assert slope.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    *((name, "float32") for name in [*SMOOTH, "gsmelu:0.1", "smelu:1e-6"]),
    *((n, d) for n in CORES for d in ("float16", "bfloat16", "float64")),
  ],
)
def test_large_input_has_finite_value_and_gradient(x64, name, dtype):
  fn = activations.get_activation(name)
  sizes = np.array([1e4, min(1e30, float(jnp.finfo(dtype).max)), math.inf])
  x = jnp.asarray(np.concatenate([-sizes, sizes]), dtype)
  y, slope = _value_and_slope(fn, x)
  assert y.dtype == slope.dtype == x.dtype
  left = 0.01 if "gsmelu" in name else 0
  flat, steep = np.split(np.asarray(slope, float), 2)
  _close(flat, left, 1e-4)
  _close(steep, 1, 1.1e-8)
  y, x = np.split(np.asarray(y, float), 2), np.split(np.asarray(x, float), 2)
  np.testing.assert_allclose(y[1], x[1], rtol=1e-7)
  if left:
    np.testing.assert_allclose(y[0], left * x[0], rtol=1e-2)
  else:
    _close(y[0], 0, 1e-3)


def test_flat_lines_stay_flat_at_infinity():
  x = jnp.array([-jnp.inf, jnp.inf])
  flip = functools.partial(
    activations.gsmelu, negative_slope=-1.0, positive_slope=0.0
  )
  assert flip(x).tolist() == [math.inf, -1.0]
  assert _slope(flip, x).tolist() == [-1, 0]
  leaky = functools.partial(activations.rescu, kernel="cosine")
  y = leaky(x, negative_slope=jnp.float32(0), positive_slope=jnp.float32(1))
  assert y.tolist() == [0, math.inf]


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_the_rounded_value(name, dtype):
  fn = activations.get_activation(name)
  x = jnp.linspace(-3, 3, 301).astype(dtype)
  wide = x.astype("float32")
  eps = float(jnp.finfo(dtype).eps)
  got, want = fn(x).astype("float32"), fn(wide)
  np.testing.assert_allclose(got, want, rtol=eps, atol=1e-7)
  got = _slope(fn, x).astype("float32")
  np.testing.assert_allclose(got, _slope(fn, wide), rtol=eps, atol=1e-3)


@pytest.mark.parametrize("name", [*NUMBERED, "mish", "tanhexp"])
def test_derivatives_match_finite_differences(x64, name):
  fn = activations.get_activation(name)
  x = jnp.array([0.0, -1.9, -0.7, -0.31, 0.01, 0.23, 0.77, 2.1])
  h = 1e-5
  around = _slope(fn, jnp.concatenate([x, x + h, x - h]))
  slope, above, below = jnp.split(around, 3)
  _close(slope, (fn(x + h) - fn(x - h)) / (2 * h), 1e-8)
  # Not at 0, where the density of the triangle has a corner.
  numeric = (above - below)[1:] / (2 * h)
  _close(_curvature(fn, x)[1:], numeric, 1e-7)


@pytest.mark.parametrize(
  "name", ["smelu:0.5", "gsmelu", "rescu_cosine", "gelu"]
)
def test_all_orders_of_differentiation_agree(x64, name):
  fn = activations.get_activation(name)
  x = jnp.array([-0.4, 0.0, 0.2, 3.0])
  total = lambda x: jnp.sum(fn(x) ** 2)

  @jax.jit
  def hessians(x):
    forward_over_reverse = jax.jacfwd(jax.grad(total))(x)
    reverse_over_reverse = jax.jacrev(jax.grad(total))(x)
    forward_over_forward = jax.jacfwd(jax.jacfwd(total))(x)
    return forward_over_reverse, reverse_over_reverse, forward_over_forward

  y, slope = _value_and_slope(fn, x)
  want = jnp.diag(2 * slope**2 + 2 * y * _curvature(fn, x))
  for got in hessians(x):
    _close(got, want)
  tangent = jax.jvp(fn, (x,), (2 * jnp.ones_like(x),))[1]
  _close(tangent, 2 * slope)
  _close(jax.grad(lambda x: fn(x).sum())(x), slope)
  _close(jax.vmap(fn)(x), y)


def test_smelu_is_monotone_convex_lipschitz_and_smooth(x64):
  x, h = np.linspace(-3, 3, 6001, retstep=True)
  for beta in (0.3, 1.0, 2.5):
    y = np.asarray(activations.smelu(x, beta))
    steps = np.diff(y) / h
    assert (steps >= 0).all() and (steps <= 1 + 1e-9).all()
    assert (np.diff(steps) >= -1e-9).all()
    slope = _slope(functools.partial(activations.smelu, beta=beta), x)
    assert np.abs(np.diff(slope)).max() <= h / (2 * beta) + 1e-12


def test_smelu_approaches_relu(x64):
  x = np.linspace(-3, 3, 1001)
  for beta in (1.0, 1e-2, 1e-6, 1e-20, 1e-300):
    gap = activations.smelu(x, beta) - np.maximum(x, 0)
    _close(np.abs(gap).max(), beta / 4, 1e-12)
  for zero in (0, 0.0, jnp.zeros(()), jnp.zeros(1001)):
    fn = functools.partial(activations.smelu, beta=zero)
    assert (fn(x) == np.maximum(x, 0)).all()
    gradient = jax.jit(jax.grad(lambda x, fn=fn: fn(x).sum()))
    assert (gradient(jnp.asarray(x)) == (x > 0)).all()


def test_smelu_scaling_symmetry_and_second_derivative(x64):
  x = np.linspace(-3, 3, 101)
  for c, beta in [(0.2, 0.7), (3.0, 1.0), (1e100, 2.0)]:
    y = activations.smelu(c * x, c * beta)
    _close(y / c, activations.smelu(x, beta))
  _close(activations.smelu(x, 0.7) - activations.smelu(-x, 0.7), x)
  near = jnp.array([-0.7 + 1e-9, 0.0, 0.7 - 1e-9, -0.8, 0.8])
  fn = functools.partial(activations.smelu, beta=0.7)
  _close(_curvature(fn, near), [1 / 1.4] * 3 + [0, 0], 1e-9)


def _relu_mean(x, density, low, high):
  """ReLU convolved with a density on [low, high], split at the kink."""
  kink = min(max(x, low), high)
  parts = []
  for a, b in [(low, kink), (kink, high)]:
    for left in np.linspace(a, b, 9)[:-1]:
      u, w = _gauss(left, left + (b - a) / 8)
      parts.append(np.sum(w * density(u) * np.maximum(x - u, 0)))
  return sum(parts)


DENSITIES = {
  "box": (lambda u: 0.5 * np.ones_like(u), 1),
  "triangle": (lambda u: 1 - np.abs(u), 1),
  "cosine": (lambda u: (1 + np.cos(np.pi * u)) / 2, 1),
  "logistic": (lambda u: 1 / (4 * np.cosh(u / 2) ** 2), 40),
  "gaussian": (lambda u: np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi), 12),
  "student": (lambda u: 0.5 * (1 + u**2) ** -1.5, 1e4),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_rescu_is_relu_convolved_with_the_kernel(x64, kernel):
  density, reach = DENSITIES[kernel]
  width = 0.6
  x = np.array([-1.7, -0.45, -0.1, 0.0, 0.2, 0.5, 1.4])
  for point in x:
    if kernel == "student":
      # Substituting u = sinh(t) spreads the nodes over the long tail.
      t, w = _gauss(-math.asinh(reach), math.asinh(point / width), 200)
      u = np.sinh(t)
      want = np.sum(w * np.cosh(t) * density(u) * (point / width - u))
      want += 1 / (2 * reach)  # of the tail below -reach
    else:
      want = _relu_mean(point / width, density, -reach, reach)
    got = activations.rescu(point, kernel, width)
    _close(got, width * want, 1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rescu_slopes(x64, kernel):
  fn = lambda x: activations.rescu(x, kernel, 0.5, 0.2, 1.5)
  x = jnp.linspace(-2, 2, 41)
  ramp = lambda x: activations.rescu(x, kernel, 0.5)
  _close(fn(x), 0.2 * x + 1.3 * ramp(x))
  _close(_slope(fn, x), 0.2 + 1.3 * _slope(ramp, x))
  _close(_slope(ramp, x) + _slope(ramp, -x), 1)
  assert (np.diff(_slope(ramp, x)) >= -1e-15).all()


def test_rescu_equals_its_namesakes(x64):
  x = np.linspace(-5, 5, 101)
  width = 0.4
  _close(activations.rescu(x, "box", width), activations.smelu(x, width))
  logistic = activations.rescu(x, "logistic", width)
  _close(logistic, activations.softplus(x, 1 / width))
  _close(logistic, width * np.log1p(np.exp(x / width)))
  student = activations.rescu(x, "student", width)
  _close(student, (x + np.sqrt(x**2 + width**2)) / 2)
  _close(student, activations.squareplus(x, width**2))


def test_comparison_activations_are_those_of_jax(x64):
  x = jnp.linspace(-5, 5, 101)
  _close(activations.swish(x), jax.nn.swish(x))
  _close(activations.swish(x, 3.0), x * jax.nn.sigmoid(3 * x))
  _close(activations.gelu(x), jax.nn.gelu(x, approximate=False))
  _close(activations.gelu(x, approximate=True), jax.nn.gelu(x))
  _close(activations.gelu(x, 2.0), jax.nn.gelu(2 * x, approximate=False) / 2)
  _close(activations.mish(x), jax.nn.mish(x))
  _close(activations.squareplus(x), jax.nn.squareplus(x))
  _close(activations.tanhexp(x), x * jnp.tanh(jnp.exp(x)))


def _random_gsmelu(seed):
  rng = np.random.default_rng(seed)
  low, high, offset = rng.normal(size=3).tolist()
  alpha, beta = rng.uniform(0.01, 3, 2).tolist()
  return dict(
    negative_slope=low,
    positive_slope=high,
    alpha=alpha,
    beta=beta,
    offset=[offset, "origin", "zero"][seed % 3],
  )


@pytest.mark.parametrize("seed", range(9))
def test_gsmelu_is_continuous_with_its_derivative(x64, seed):
  p = _random_gsmelu(seed)
  fn = functools.partial(activations.gsmelu, **p)
  joints = np.array([-p["alpha"], p["beta"]])
  for f in (fn, functools.partial(_slope, fn)):
    _close(f(joints - 1e-12), f(joints + 1e-12), 1e-9)
  slopes = np.array([p["negative_slope"], p["positive_slope"]])
  np.testing.assert_array_equal(_slope(fn, joints), slopes)
  # The integral of the second derivative is the rise of the slope.
  x, w = _gauss(*joints)
  _close(np.sum(w * _curvature(fn, x)), slopes[1] - slopes[0], 1e-10)
  if p["offset"] == "zero":
    _close(fn(0.0), 0)
  if p["offset"] == "origin":
    _close(fn(2 * joints[0]), 2 * slopes[0] * joints[0])


def test_gsmelu_with_equal_halves_is_smelu(x64):
  for beta in (0.3, 2.0):
    y = activations.gsmelu(X, alpha=beta, beta=beta)
    _close(y, activations.smelu(X, beta))


def _numeric(fn, at, h=1e-6):
  return (fn(at + h) - fn(at - h)) / (2 * h)


def test_gradient_by_beta(x64):
  x = jnp.linspace(-2, 2, 40)
  by_beta = jax.jit(jax.jacfwd(lambda b: activations.smelu(x, b)))(0.8)
  inside = (0.64 - x**2) / (4 * 0.64)
  _close(by_beta, jnp.where(jnp.abs(x) < 0.8, inside, 0))
  betas = jnp.array([0.3, 0.8, 1.5, 0.0])
  smelu = activations.smelu
  fn = jax.jit(lambda b: jnp.sum(jnp.sin(smelu(x.reshape(10, 4), b))))
  got = jax.jit(jax.grad(fn))(betas)
  for i in range(3):
    along = lambda t, i=i: fn(betas.at[i].set(t))
    _close(got[i], _numeric(along, betas[i]), 1e-7)
  assert jnp.isfinite(got[3])
  mixed = jax.jit(jax.hessian(smelu, argnums=(0, 1)))(0.3, 0.8)
  _close(mixed[0][1], -0.3 / (2 * 0.64))
  _close(mixed[1][1], 0.09 / (2 * 0.8**3))


PARAMETERS = [
  (activations.swish, "beta"),
  (activations.gelu, "beta"),
  (activations.softplus, "beta"),
  (activations.squareplus, "b"),
  *((activations.gsmelu, n) for n in GSMELU),
  *(
    (functools.partial(activations.rescu, kernel=k), n)
    for k in KERNELS
    for n in ("width", "negative_slope", "positive_slope")
  ),
]


@pytest.mark.parametrize(("fn", "name"), PARAMETERS)
def test_gradients_by_parameters(x64, fn, name):
  x = jnp.array([-1.9, -0.7, -0.2, 0.0, 0.3, 0.9, 2.2])
  total = jax.jit(lambda p: jnp.sum(jnp.sin(fn(x, **{name: p}))))
  _close(jax.jit(jax.grad(total))(0.8), _numeric(total, 0.8), 1e-8)


def test_smelu_holds_its_output_alone_for_the_backward_pass():
  x = jnp.linspace(-2, 2, 9)
  for fn in (activations.smelu, jax.jit(activations.smelu)):
    y, backward = jax.vjp(fn, x)
    held = [a for a in jax.tree.leaves(backward) if a.ndim]
    assert all(a is y for a in held) and len(held) == 1


@pytest.mark.parametrize("name", [*NUMBERED, "mish", "tanhexp"])
def test_backward_pass_holds_one_array_at_most(name):
  x = jnp.linspace(-2, 2, 9)
  fn = activations.get_activation(name)
  _, backward = jax.vjp(fn, x)
  assert sum(a.size for a in jax.tree.leaves(backward) if a.ndim) == x.size


BAD = [
  (lambda: activations.smelu(X, -0.5), "beta=-0.5"),
  (lambda: activations.smelu(X, math.nan), "beta=nan"),
  (lambda: activations.smelu(X + 1j), "must be real"),
  (lambda: activations.gsmelu(X, alpha=0.0), "alpha=0.0"),
  (lambda: activations.gsmelu(X, beta=-1), "beta=-1"),
  (lambda: activations.gsmelu(X, offset="orgin"), "did you mean 'origin'"),
  (lambda: activations.gsmelu(X, negative_slope=math.inf), "negative_slope"),
  (lambda: activations.rescu(X, "boxx"), "did you mean 'box'"),
  (lambda: activations.rescu(X, "box", 0.0), "width=0.0"),
  (lambda: activations.swish(X, 0), "beta=0"),
  (lambda: activations.get_activation("smilu"), "'smelu'"),
  (lambda: activations.get_activation("smelu:x"), "must be a number"),
  (lambda: activations.get_activation("smelu:"), "must be a number"),
  (lambda: activations.get_activation("smelu:-1"), "beta=-1.0"),
  (lambda: activations.get_activation("mish:1"), "takes no number"),
  (lambda: activations.register_activation("relu", abs), "already"),
  (lambda: activations.register_activation("a:b", abs), "identifier"),
  (lambda: modules.SmeLU(beta_init=-1.0), "beta_init=-1.0"),
  (lambda: modules.SmeLU(beta_init=1e-4, trainable=True), "beta_init=0.0001"),
  (lambda: modules.SmeLU(per_channel=True), "per_channel"),
  (lambda: modules.GSmeLU(alpha=0.0), "alpha=0.0"),
  (
    lambda: modules.GSmeLU(negative_slope=1.0, trainable=True),
    "positive_slope - negative_slope",
  ),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()


def test_invalid_array_gives_nan():
  fns = (
    activations.smelu,
    activations.swish,
    activations.softplus,
    lambda x, b: activations.gsmelu(x, alpha=b),
    lambda x, b: activations.rescu(x, "cosine", b),
  )
  for fn in fns:
    y = jax.jit(fn)(jnp.ones(3), jnp.array([-1.0, 1.0, jnp.nan]))
    assert jnp.isnan(y).tolist() == [True, False, True]
  assert jnp.isnan(activations.smelu(jnp.nan))


def test_registry():
  names = activations.activation_names()
  assert {"relu", "elu", "selu", "smelu", "gsmelu", "gelu"} <= set(names)
  get = activations.get_activation
  assert get("smelu:0.5") is get("smelu:0.5")
  assert get(jnp.tanh) is jnp.tanh
  assert float(get("smelu:0.5")(0.0)) == 0.125
  assert get("relu") is jax.nn.relu
  triple = lambda x, factor=3.0: factor * x
  assert activations.register_activation("triple_for_test", triple) is triple
  assert activations.register_activation("triple_for_test", triple) is triple
  assert get("triple_for_test:2")(1.0) == 2.0
  assert activations.smelu(jnp.arange(3)).dtype == jnp.float32


def test_modules_without_parameters():
  x = jnp.linspace(-2, 2, 8).reshape(2, 4)
  chex.assert_trees_all_equal(
    modules.SmeLU(beta_init=0.5).apply({}, x), activations.smelu(x, 0.5)
  )
  chex.assert_trees_all_equal(
    modules.GSmeLU(**GSMELU).apply({}, x), activations.gsmelu(x, **GSMELU)
  )


@pytest.mark.parametrize("per_channel", [False, True])
def test_trainable_modules_start_at_their_settings(per_channel):
  x = jnp.linspace(-2, 2, 8).reshape(2, 4)
  common = dict(trainable=True, per_channel=per_channel)
  shape = (4,) if per_channel else ()
  for module, want in [
    (modules.SmeLU(beta_init=0.5, **common), activations.smelu(x, 0.5)),
    (modules.GSmeLU(**GSMELU, **common), activations.gsmelu(x, **GSMELU)),
  ]:
    variables = jax.jit(module.init)(jax.random.key(0), x)
    assert {p.shape for p in jax.tree.leaves(variables)} == {shape}
    chex.assert_trees_all_close(module.apply(variables, x), want, atol=1e-6)
    total = lambda v, m=module: m.apply(v, x).sum()
    grads = jax.jit(jax.grad(total))(variables)
    for leaf in jax.tree.leaves(grads):
      assert jnp.isfinite(leaf).all() and (leaf != 0).any()
    assert module.apply(variables, x.astype("bfloat16")).dtype == "bfloat16"


def test_trained_parameters_stay_valid():
  module = modules.GSmeLU(trainable=True)
  x = jnp.linspace(-2, 2, 9)
  variables = module.init(jax.random.key(0), x)
  far = jax.tree.map(lambda p: p - 100, variables)
  assert jnp.isfinite(module.apply(far, x)).all()
  assert float(modules.to_positive(-1e4)) >= modules.MINIMUM


def test_trainable_beta_finds_the_one_that_made_the_data():
  x = jnp.linspace(-2, 2, 64)
  target = activations.smelu(x, 0.4)
  module = modules.SmeLU(trainable=True)
  variables = module.init(jax.random.key(0), x)
  loss = lambda v: jnp.mean((module.apply(v, x) - target) ** 2)

  def step(_, v):
    return jax.tree.map(lambda p, g: p - 30 * g, v, jax.grad(loss)(v))

  variables = jax.lax.fori_loop(0, 500, step, variables)
  beta = modules.to_positive(variables["params"]["raw_beta"])
  assert abs(float(beta) - 0.4) < 0.01


def test_matching_potential_is_the_integral_of_smelu(x64):
  x = jnp.linspace(-3, 3, 61)
  for beta in (0.5, 1.0, 2.0):
    loss = matching.smelu(beta)
    fn = functools.partial(activations.smelu, beta=beta)
    _close(loss.transfer(x), fn(x))
    _close(_slope(loss.potential, x), fn(x))
    u, w = _gauss(-beta, beta)
    total = loss.potential(beta) - loss.potential(-beta)
    _close(np.sum(w * fn(u)), total)
