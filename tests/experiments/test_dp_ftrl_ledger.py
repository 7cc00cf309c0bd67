"""The ledger of federated runs: the way it goes along with checkpoints.

A run that is resumed makes the same rounds; one that is not the same is
refused, and what it states is never less than what was spent.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest

from experiments.common import stages
from experiments.dp_ftrl import experiment, mechanisms, statement
from experiments.dp_ftrl.configs import classification
from locojax.methods import dp_ftrl
from locojax.methods.dp_ftrl import sensitivity
from locojax.train import loop


def _one(**changes):
  """The tiny classification; `data__seed=1` changes `data.seed`."""
  config = classification.get_config("tiny").copy_and_resolve_references()
  settings = {"method": "tree_honaker", "server_rate": 0.3, **changes}
  with config.unlocked():
    for name, value in settings.items():
      *nodes, last = name.split("__")
      node = config
      for n in nodes:
        node = node[n]
      node[last] = value
  return config


def _records(config, folder, num_rounds=None):
  """The ledger of a run's rounds, which are not made: norms stay."""
  made = experiment.build(config, folder)
  state = made.init(jax.random.key(0))
  for k in range(num_rounds or config.num_rounds):
    made.journal.before_step(k, state)
  return dp_ftrl.PrivacyLedger(folder / experiment.LEDGER)


@pytest.mark.parametrize(
  "changes",
  [
    {"method": "tree_honaker"},
    {"method": "tree_honaker_restart"},
    {"method": "tree_honaker_restart", "period": 11},  # longer than an epoch
    {"method": "tree_honaker_restart", "period": 5},
    {"method": "tree_honaker_adaptive"},
    {"method": "tree_honaker_adaptive", "warmup": 3},
  ],
)
def test_the_ledger_charges_what_the_config_says(tmp_path, changes):
  """Epochs of 8 rounds: each client comes back after 8, at most 4 times."""
  settings = dict(changes)
  restart = {n: settings.pop(n, 0) for n in ("period", "warmup")}
  config = _one(num_rounds=29, rho=2.0, restart=restart, **settings)
  with config.unlocked():
    config.clip.count_stddev = 40.0
  found = _records(config, tmp_path).statement("run", delta=1e-5)
  assert found["rho"] == pytest.approx(2.0, abs=1e-9)
  place = experiment.setting(config, 64)
  assert place.max_participations == 4 and place.min_sep == 8
  made = mechanisms.make(config.method, place, config.rho)
  assert found["squared_sensitivity"] == made.squared_sensitivity
  if config.method != "tree_honaker":
    lengths = place.restart.lengths(29)
    assert found["num_trees"] == len(lengths)
    if max(lengths) <= 8:
      squared = dp_ftrl.restart_squared_sensitivity(lengths)
      assert found["squared_sensitivity"] == squared


def test_devices_that_check_in_keep_to_what_is_declared(tmp_path):
  sampler = {"name": "min_sep", "min_sep": 4, "max_participations": 3}
  config = _one(num_rounds=24, rho=2.0, method="blt", sampler=sampler)
  place = experiment.setting(config, 64)
  assert (place.max_participations, place.min_sep) == (3, 4)
  found = _records(config, tmp_path).releases[-1]
  assert 1 < found["max_participations"] <= 3 and found["min_sep"] >= 4
  wanted = _one(num_rounds=24, sampler={**sampler, "min_sep": 0})
  assert experiment.setting(wanted, 64).min_sep == 8
  with pytest.raises(ValueError, match="sampler.name"):
    experiment.setting(_one(sampler={**sampler, "name": "epoch"}), 64)


ADAPTIVE = {
  "method": "tree_honaker_adaptive",
  "restart": {"period": 2, "warmup": 1},
  "rho": 50.0,
}


def _adaptive(**changes):
  config = _one(**ADAPTIVE, **changes)
  with config.unlocked():
    config.clip.count_stddev = 1.0
  return config


def _watched(made, before_step):
  """The experiment with something else done before a step."""
  own = made.journal
  journal = types.SimpleNamespace(
    before_step=before_step, head=own.head, check=own.check
  )
  return dataclasses.replace(made, journal=journal)


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
  """What an uninterrupted run showed before each round, its end and ledger."""
  folder, config, seen = tmp_path_factory.mktemp("adaptive"), _adaptive(), []
  made = experiment.build(config, folder)

  def before_step(k, state):
    made.journal.before_step(k, state)
    seen.append((k, *_inner(state)))

  watched = _watched(made, before_step)
  state = stages.fit(watched, config, folder, log_every=6, save_every=6)
  return seen, state, dp_ftrl.PrivacyLedger(folder / experiment.LEDGER)


def _inner(state):
  """Tree of the last round, its norm, the estimate, and node deviations."""
  noise, clip = state.opt_state.server[0], state.opt_state.clip
  count = clip.count
  read = lambda *x: [float(v) for v in x]
  return read(noise.tree_id, clip.norm, clip.estimate, noise.std, count.std)


def test_the_ledger_has_the_norms_and_trees_of_the_state(adaptive):
  seen, state, book = adaptive
  assert [r["tree_id"] for r in book.releases] == [0, 1, 1, 2, 2, 3]
  after = [inner for _, *inner in seen[1:]] + [_inner(state)]
  estimates = [inner[2] for _, *inner in seen]
  norms = []
  for record, (tree_id, norm, _, std, count_std) in zip(book.releases, after):
    assert (record["tree_id"], record["clip_norm"]) == (tree_id, norm)
    assert std == pytest.approx(norm * record["noise_multiplier"], rel=1e-6)
    assert count_std == pytest.approx(0.5 * record["count_multiplier"])
    norms.append(norm)
  # Constant within a tree, and at its start the estimate.
  assert norms[1] == norms[2] == estimates[1] != norms[0]
  assert norms[3] == norms[4] == estimates[3] and norms[5] == estimates[5]
  assert len(set(norms)) == 4 and len(set(estimates)) == 6
  found = book.statement("run", delta=1e-5)
  assert found["rho"] == pytest.approx(50.0, abs=1e-9)
  assert found["num_trees"] == 4


@pytest.mark.parametrize("at", [1, 2])  # a tree starts; within a tree
def test_adaptive_clipping_resumes_in_the_same_bits(adaptive, tmp_path, at):
  """Killed before round `at + 1` with the ledger one round ahead."""
  config = _adaptive()
  settings = dict(log_every=at, save_every=at, keep=1)
  made = experiment.build(config, tmp_path)

  def killed(k, state):
    made.journal.before_step(k, state)
    if k == at:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    stages.fit(_watched(made, killed), config, tmp_path, **settings)
  again = experiment.build(config, tmp_path)
  state = stages.fit(again, config, tmp_path, **settings)
  _, whole, book = adaptive
  jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
  assert _inner(state) == _inner(whole)
  again = dp_ftrl.PrivacyLedger(tmp_path / experiment.LEDGER)
  assert again.records == book.records and again.head == book.head


def test_a_ledger_that_is_taken_up_at_any_round_is_the_same(tmp_path):
  """Of states that are stand-ins: the estimate before round k is 1 + k."""
  config = _adaptive(num_rounds=9)
  restart = dp_ftrl.RestartPolicy(2, warmup=1)

  first = experiment.build(config).init(jax.random.key(0))

  def state(k):
    norm = 1.0 + restart.tree_of(max(k - 1, 0))[1]
    clip = first.opt_state.clip._replace(estimate=1.0 + k, norm=norm)
    return first.replace(opt_state=first.opt_state._replace(clip=clip))

  def records(name, cut):
    for start, end in ((0, cut), (max(cut - 2, 0), 9)):
      made = experiment.build(config, tmp_path / name)
      for k in range(start, end):
        made.journal.before_step(k, state(k))
    return dp_ftrl.PrivacyLedger(tmp_path / name / experiment.LEDGER).releases

  whole = records("whole", 0)
  firsts = [restart.tree_of(k)[1] for k in range(9)]
  assert [r["clip_norm"] for r in whole] == [1.0 + first for first in firsts]
  for cut in range(1, 9):
    assert records(f"cut_{cut}", cut) == whole


# --------------------------------------------------- another config half-way

SHORT, LONG = 9, 24
MIN_SEP = {"sampler__name": "min_sep"}
# What used to be stated against what was spent, by the drawn cohorts.
UNDERSTATED = {
  "1.0 of 3.0": ({**MIN_SEP, "sampler__min_sep": 8}, "sampler.min_sep .0 th"),
  "2.5 of 5.06": ({**MIN_SEP, "sampler__min_sep": 4}, "sampler.min_sep .0 th"),
  "1.69 of 2.25": ({"data__num_clients": 48}, "data.num_clients .64 there, 48"),
  "1.33 of 1.44": ({"cohort_size": 4}, "cohort_size .8 there, 4 here"),
  "0.75 of 3.75": ({"seed": 1}, "seed .0 there, 1 here"),
}
OTHERS = {
  "client_rate": ({"client_rate": 0.1}, "client_rate .0.5 there, 0.1 here"),
  "server_rate": ({"server_rate": 0.1}, "server_rate .0.3 there, 0.1 here"),
  "momentum": ({"momentum": 0.0}, "momentum .0.9 there, 0.0 here"),
  "local_steps": ({"local_steps": 1}, "local_steps .2 there, 1 here"),
  "local_epochs": ({"local_epochs": 1}, "local_epochs .2 there, 1 here"),
  "batch_size": ({"batch_size": 4}, "batch_size .5 there, 4 here"),
  "clip_norm": ({"clip_norm": 0.25}, "clip_norm .0.5 there, 0.25 here"),
  "rho": ({"rho": 4.0}, "noise_multiplier .*rho .1.0 there, 4.0 here"),
  "num_rounds": ({"num_rounds": 32}, "num_rounds .24 there, 32 here"),
  "delta": ({"delta": 1e-6}, "delta .1e-05 there, 1e-06 here"),
  "data.seed": ({"data__seed": 1}, "clients .*data.seed .0 there, 1 here"),
  "data.alpha": ({"data__alpha": 9.0}, "data.alpha .0.3 there, 9.0 here"),
  "model": ({"model__hidden": (8,)}, r"model.hidden .\[32\] there, \[8\] here"),
  "restart": ({"method": "tree_honaker_restart"}, "method .'tree_honaker' the"),
  "estimator": ({"method": "tree_basic"}, "method .'tree_honaker' there"),
  "mechanism": ({"method": "independent"}, "mechanism .'tree' there, 'indep"),
  "amount": ({"data__examples_per_client": 4}, "clients .*examples_per_client"),
}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
  """The folder of a run of 24 rounds, of which 9 are in the ledger."""
  folder = tmp_path_factory.mktemp("short")
  made = experiment.build(_one(num_rounds=LONG), folder)
  state = made.init(jax.random.key(0))
  made.journal.check(0, None)
  for k in range(SHORT):
    made.journal.before_step(k, state)
  return folder, state, made


@pytest.mark.parametrize("name", [*UNDERSTATED, *OTHERS])
def test_another_config_is_refused_and_named(short, name):
  folder, state, first = short
  changes, words = {**UNDERSTATED, **OTHERS}[name]
  text = (folder / experiment.LEDGER).read_text()
  made = experiment.build(_one(**{"num_rounds": LONG, **changes}), folder)
  refused = pytest.raises(dp_ftrl.LedgerError, match=words)
  # At the checkpoint, with a ledger ahead of it, and without a checkpoint.
  for step, head in ((SHORT, first.journal.head()), (5, None), (0, None)):
    with refused:
      made.journal.check(step, head)
    with refused:
      made.journal.before_step(step, state)
  assert (folder / experiment.LEDGER).read_text() == text


def test_what_is_watched_or_compared_may_differ(short):
  folder, _, first = short
  changes = {"save_every": 2, "eval_batch_size": 50, "results": "a.json"}
  lists = {"seeds": (3,), "server_rates": (1.0,), "rhos": (2.0,)}
  same = _one(num_rounds=LONG, **changes, **lists)
  experiment.build(same, folder).journal.check(SHORT, first.journal.head())


def _spent(parts):
  """rho of the clients that took part, of the worst one, by brute force.

  Args:
    parts: `(journal, rounds)` of each key.
  """
  spent = collections.Counter()
  for journal, rounds in parts:
    taken = collections.defaultdict(list)
    for i, t in enumerate(rounds):
      for client in journal._present(t):
        taken[int(client)].append(i)
    z = journal._release.noise_multiplier
    for client, own in taken.items():
      squared = sensitivity.pattern(own, len(rounds))
      spent[client] += dp_ftrl.zcdp(squared, z)
  return max(spent.values())


@pytest.mark.parametrize("name", UNDERSTATED)
def test_with_a_new_key_no_less_is_stated_than_was_spent(short, tmp_path, name):
  """Rounds 9 to 23 with another config, a fresh key and a fresh tree."""
  folder, old_state, first = short
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  path = tmp_path / experiment.LEDGER
  # Two rounds are lost: the checkpoint is of round 7.
  config = _one(**{"num_rounds": LONG, "seed": 7, **UNDERSTATED[name][0]})
  key = dp_ftrl.key_fingerprint(experiment.noise_key(config))
  dp_ftrl.PrivacyLedger(path).resume(
    "run", SHORT - 2, policy="new_tree", new_key=key
  )
  made = experiment.build(config, tmp_path)
  made.journal.check(SHORT - 2, None)
  with pytest.raises(dp_ftrl.LedgerError, match="noise of the checkpoint"):
    made.journal.before_step(SHORT - 2, old_state)
  state = made.init(jax.random.key(0))
  for k in range(SHORT - 2, LONG):
    made.journal.before_step(k, state)
  found = dp_ftrl.PrivacyLedger(path).statement("run", delta=1e-5)
  rounds = range(SHORT), range(SHORT - 2, LONG)
  spent = _spent(zip((first.journal, made.journal), rounds))
  assert found["rho"] >= spent * (1 - 1e-12)
  assert found["num_rounds"] == LONG + 2 and found["num_trees"] == 2


def test_a_replay_states_what_was_spent(short, tmp_path):
  folder, state, first = short
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  made = experiment.build(_one(num_rounds=LONG), tmp_path)
  made.journal.check(4, None)
  for k in range(4, LONG):
    made.journal.before_step(k, state)
  book = dp_ftrl.PrivacyLedger(tmp_path / experiment.LEDGER)
  assert len(book.releases) == LONG
  found = book.statement("run", delta=1e-5)["rho"]
  assert found == pytest.approx(_spent([(first.journal, range(LONG))]))


def test_noise_in_the_state_is_that_of_the_ledger(short):
  folder, _, first = short
  made = experiment.build(_one(num_rounds=LONG), folder)
  made.journal.check(SHORT, first.journal.head())
  other = experiment.build(_one(num_rounds=LONG, seed=1))
  with pytest.raises(dp_ftrl.LedgerError, match="what is released would not"):
    made.journal.before_step(SHORT, other.init(jax.random.key(0)))


@pytest.mark.parametrize("method", ["tree_honaker", "tree_honaker_restart"])
def test_cohorts_of_all_trees_are_held_against_the_ledger(tmp_path, method):
  """Other clients in round 1, which no setting tells."""
  config = _one(num_rounds=LONG, method=method, restart__period=3)
  _records(config, tmp_path, SHORT)
  made = experiment.build(config, tmp_path)
  own = made.journal._sampler
  made.journal._sampler = lambda t: own(t + (t == 1))
  with pytest.raises(dp_ftrl.LedgerError, match="the cohort of round 1 is not"):
    made.journal.check(SHORT, None)


def test_what_is_declared_holds_over_all_trees(tmp_path):
  config = _one(num_rounds=LONG, method="tree_honaker_restart")
  made = experiment.build(config, tmp_path)
  made.journal._declared = (2, 8)  # once in each of three trees
  state = made.init(jax.random.key(0))
  with pytest.raises(ValueError, match="declared were max_participations=2"):
    for k in range(LONG):
      made.journal.before_step(k, state)
  assert k == 16


# ------------------------------------------------- the ledger and its folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run of 6 rounds with checkpoints at 3 and 6."""
  folder = tmp_path_factory.mktemp("trained")
  return folder, experiment.fit(_one(save_every=3), folder)


@pytest.fixture
def half(trained, tmp_path):
  """The same as it was when killed after round 6, before its checkpoint."""
  shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / "ckpt" / "6")
  (tmp_path / "result.json").unlink()
  return tmp_path


def _lines(folder):
  text = (folder / experiment.LEDGER).read_text()
  return text.splitlines(keepends=True)


def _params(folder):
  """Of the final state, of a run that is finished."""
  made, config = experiment.build(_one(), folder), _one()
  return stages.fit(made, config, folder, may_differ=("server_rates",)).params


def test_a_killed_run_ends_in_the_same_bits_and_ledger(trained, half):
  folder, result = trained
  path, lines = half / experiment.LEDGER, _lines(folder)
  # One round ahead of the checkpoint, and the next one's line torn.
  path.write_text("".join(lines[:5]) + lines[5][:40])
  assert experiment.fit(_one(save_every=3), half)["values"] == result["values"]
  assert path.read_bytes() == (folder / experiment.LEDGER).read_bytes()
  jax.tree.map(np.testing.assert_array_equal, _params(half), _params(folder))
  found = json.loads((half / "result.json").read_text())["journal"]
  assert found == result["journal"] == dp_ftrl.PrivacyLedger(path).head
  assert found["records"] == 7  # the settings, and six rounds


def _changed(lines):
  return [*lines[:-1], lines[-1].replace('"clip_norm": 0.5', '"clip_norm": 5')]


DAMAGES = {
  "changed": (_changed, "is not the line that was written"),
  "deleted": (lambda lines: lines[:-1], "of the . records that it had"),
  "torn": (lambda lines: [*lines[:-1], lines[-1][:9]], "of the . records"),
  "emptied": (lambda lines: [], "has 0 of the . records"),
  "no file": (lambda lines: None, "has 0 of the . records"),
  "not JSON": (lambda lines: [*lines[:-1], "{'round': 5}\n"], ", line .: "),
  "exchanged": (lambda lines: ["{}\n"], ", line 1: it does not follow"),
}


def _damage(folder, lines, damage):
  made, path = damage(lines), folder / experiment.LEDGER
  if made is None:
    path.unlink(missing_ok=True)
  else:
    path.write_text("".join(made))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_ledger_is_found(trained, tmp_path, capsys, name):
  """When the finished run is asked for again, resumed, and stated."""
  folder, result = trained
  damage, words = DAMAGES[name]
  path = tmp_path / experiment.LEDGER
  for file in ("config.json", "result.json"):
    shutil.copy(folder / file, tmp_path)
  _damage(tmp_path, _lines(folder), damage)
  refused = pytest.raises(dp_ftrl.LedgerError, match=words)
  with refused:
    experiment.fit(_one(save_every=3), tmp_path)
  journal = experiment.build(_one(), tmp_path).journal
  with refused:
    journal.check(6, result["journal"])
  with pytest.raises(SystemExit, match="2"):
    statement.main(["--ledger", str(path), "--delta", "1e-5"])
  assert str(path) in capsys.readouterr().err
  # Half-way: what was written before the checkpoint of round 3.
  early = _lines(folder)[:4]
  path.write_text("".join(early))
  head = dp_ftrl.PrivacyLedger(path).head
  journal.check(3, head)
  _damage(tmp_path, early, damage)
  with refused:
    journal.check(3, head)


def test_a_finished_ledger_does_not_go_on(trained, tmp_path):
  folder, result = trained
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  path = tmp_path / experiment.LEDGER
  book = dp_ftrl.PrivacyLedger(path)
  book.resume("run", 6, policy="new_tree", new_key="bbbb")
  with pytest.raises(dp_ftrl.LedgerError, match="after the run was finished"):
    experiment.fit(_one(save_every=3), tmp_path)
  path.unlink()
  with pytest.raises(SystemExit, match="2"):
    statement.main(["--ledger", str(tmp_path / "no" / "ledger.jsonl")])
  assert not (tmp_path / "no").exists()


def test_the_loop_refuses_too(half):
  """A copied folder, its config.json removed: the same noise, other updates."""
  (half / "config.json").unlink()
  other = _one(client_rate=0.1)
  settings = dict(log_every=3, save_every=3)
  words = r"client_rate \(0.5 there, 0.1 here\)"
  with pytest.raises(dp_ftrl.LedgerError, match=words):
    stages.fit(experiment.build(other, half), other, half, **settings)
  (half / experiment.LEDGER).write_text("")
  with pytest.raises(dp_ftrl.LedgerError, match="has 0 of the 4 records"):
    stages.fit(experiment.build(_one(), half), _one(), half, **settings)
  assert not (half / "result.json").exists()


# ----------------------------------------------------------- closed mechanisms


def test_a_closed_mechanism_is_no_divergence(half):
  """A larger norm within a tree, if nothing refused it before."""
  (half / "config.json").unlink()
  config = _one(clip_norm=1.0)
  made = dataclasses.replace(experiment.build(config), evals={})
  assert made.journal is None
  with pytest.raises(dp_ftrl.Closed, match="closed in round 3: .*had grown"):
    stages.fit_or_diverge(made, config, half, log_every=6, save_every=6)
  assert [p.name for p in half.glob("*.json")] == ["config.json"]


def test_no_round_is_written_down_that_the_noise_was_not_made_for(tmp_path):
  made = experiment.build(_one(num_rounds=2), tmp_path)
  state = made.init(jax.random.key(0))
  for k in range(2):
    made.journal.before_step(k, state)
  with pytest.raises(dp_ftrl.Closed, match="round 2 .*max_rounds=2"):
    made.journal.before_step(2, state)
  assert len(dp_ftrl.PrivacyLedger(tmp_path / experiment.LEDGER).releases) == 2


def test_a_run_that_diverged_keeps_its_ledger(short, tmp_path, monkeypatch):
  folder, _, made = short
  shutil.copy(folder / experiment.LEDGER, tmp_path)
  config = _one(num_rounds=LONG)

  def diverge(*_, **__):
    raise loop.NonFinite("the loss is not finite")

  with monkeypatch.context() as patch:
    patch.setattr(stages, "fit", diverge)
    found = stages.fit_or_diverge(made, config, tmp_path)
  assert "not finite" in found["diverged"]
  assert found["journal"] == made.journal.head()
  assert experiment.fit(config, tmp_path) == found
  (tmp_path / experiment.LEDGER).write_text("".join(_lines(folder)[:-1]))
  with pytest.raises(dp_ftrl.LedgerError, match="has 9 of the 10 records"):
    experiment.fit(config, tmp_path)
