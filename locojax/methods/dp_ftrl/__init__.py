"""DP-FTRL: federated learning with user-level differential privacy.

Kairouz, McMahan, Song, Thakkar, Thakurta, Xu: "Practical and Private (Deep)
Learning without Sampling or Shuffling", arXiv 2103.00039.

    tx = dp_ftrl.dp_ftrl(1.0, noise_multiplier=1.0, clip_norm=0.5,
                         num_clients=100, key=dp_ftrl.key_from_entropy(),
                         max_rounds=1000)
    step = dp_ftrl.make_step(loss_fn, tx, client_tx=optax.sgd(0.1),
                             clip=dp_ftrl.Clip(0.5), clients_per_chunk=4)
    # 1000 rounds, each client in at most 3 of them, at least 300 apart.
    zeta_sq = dp_ftrl.tree_squared_sensitivity(1000, 3, 300)
    dp_ftrl.zcdp_to_eps(dp_ftrl.zcdp(zeta_sq, 1.0), delta=1e-6)
"""

from locojax.methods.dp_ftrl.accounting import (
  BLOG_ORDERS,
  dp_event,
  noise_multiplier_for,
  poisson_eps,
  poisson_noise_multiplier,
  rho_for,
  statement,
  total_noise_multiplier,
  zcdp,
  zcdp_to_eps,
)
from locojax.methods.dp_ftrl.audit import (
  CANARY,
  canary_direction,
  canary_loss,
  gaussian_eps,
  matched_filter,
  one_run_eps,
  one_run_p_value,
)
from locojax.methods.dp_ftrl.chain import LedgerError
from locojax.methods.dp_ftrl.clipping import (
  COUNT_SENSITIVITY,
  Clip,
  QuantileClip,
  clip_update,
  split_noise_multiplier,
  update_norm,
)
from locojax.methods.dp_ftrl.examples import clipped_grad_sum
from locojax.methods.dp_ftrl.keys import fingerprint as key_fingerprint
from locojax.methods.dp_ftrl.keys import from_entropy as key_from_entropy
from locojax.methods.dp_ftrl.ledger import PrivacyLedger
from locojax.methods.dp_ftrl.matrix import (
  Strategy,
  banded,
  blt,
  blt_inverse,
  dense,
  fit_blt,
  from_buffered_toeplitz,
  from_streaming,
  identity,
  sqrt_toeplitz,
)
from locojax.methods.dp_ftrl.next_word import (
  NextWordModel,
  masked_accuracies,
  next_word_loss,
  next_word_model,
)
from locojax.methods.dp_ftrl.noise import (
  Closed,
  add_matrix_noise,
  add_tree_noise,
  check_open,
  check_rounds,
  dp_ftrl,
  noise_states,
  quantize,
  quantized_norm,
  tree_prefix_noise,
)
from locojax.methods.dp_ftrl.participation import (
  Cohort,
  Counts,
  FixedOrder,
  Log,
  MinSepSampler,
  PoissonClients,
  ShuffledEpochs,
  Trees,
  logged,
)
from locojax.methods.dp_ftrl.releases import (
  Release,
  cohort_hash,
  settings_hash,
)
from locojax.methods.dp_ftrl.rounds import (
  RoundState,
  clip_norm_in_force,
  init_state,
  make_step,
  server_sgd,
)
from locojax.methods.dp_ftrl.sensitivity import (
  every_round as every_round_squared_sensitivity,
)
from locojax.methods.dp_ftrl.sensitivity import (
  fixed_order as fixed_order_squared_sensitivity,
)
from locojax.methods.dp_ftrl.sensitivity import (
  matrix_pattern as pattern_squared_sensitivity,
)
from locojax.methods.dp_ftrl.sensitivity import (
  min_sep_from_tfp,
)
from locojax.methods.dp_ftrl.sensitivity import (
  restarts as restart_squared_sensitivity,
)
from locojax.methods.dp_ftrl.sensitivity import (
  toeplitz as toeplitz_squared_sensitivity,
)
from locojax.methods.dp_ftrl.sensitivity import (
  tree as tree_squared_sensitivity,
)
from locojax.methods.dp_ftrl.strength import Strength, noise_strength
from locojax.methods.dp_ftrl.sums import RoundedAway
from locojax.methods.dp_ftrl.tree import RestartPolicy

__all__ = [
  "BLOG_ORDERS",
  "CANARY",
  "COUNT_SENSITIVITY",
  "Clip",
  "Closed",
  "Cohort",
  "Counts",
  "FixedOrder",
  "LedgerError",
  "Log",
  "MinSepSampler",
  "NextWordModel",
  "PoissonClients",
  "PrivacyLedger",
  "QuantileClip",
  "Release",
  "RestartPolicy",
  "RoundState",
  "RoundedAway",
  "ShuffledEpochs",
  "Strategy",
  "Strength",
  "Trees",
  "add_matrix_noise",
  "add_tree_noise",
  "banded",
  "blt",
  "blt_inverse",
  "canary_direction",
  "canary_loss",
  "check_open",
  "check_rounds",
  "clip_norm_in_force",
  "clip_update",
  "clipped_grad_sum",
  "cohort_hash",
  "dense",
  "dp_event",
  "dp_ftrl",
  "every_round_squared_sensitivity",
  "fit_blt",
  "fixed_order_squared_sensitivity",
  "from_buffered_toeplitz",
  "from_streaming",
  "gaussian_eps",
  "identity",
  "init_state",
  "key_fingerprint",
  "key_from_entropy",
  "logged",
  "make_step",
  "masked_accuracies",
  "matched_filter",
  "min_sep_from_tfp",
  "next_word_loss",
  "next_word_model",
  "noise_multiplier_for",
  "noise_states",
  "noise_strength",
  "one_run_eps",
  "one_run_p_value",
  "pattern_squared_sensitivity",
  "poisson_eps",
  "poisson_noise_multiplier",
  "quantize",
  "quantized_norm",
  "restart_squared_sensitivity",
  "rho_for",
  "server_sgd",
  "settings_hash",
  "split_noise_multiplier",
  "sqrt_toeplitz",
  "statement",
  "toeplitz_squared_sensitivity",
  "total_noise_multiplier",
  "tree_prefix_noise",
  "tree_squared_sensitivity",
  "update_norm",
  "zcdp",
  "zcdp_to_eps",
]
