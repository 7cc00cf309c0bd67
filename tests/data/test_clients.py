"""Client data sets, from labels, users and texts, and cohorts of them."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from locojax.data import client_texts, clients, cohorts, sources, words

SETTINGS = dict(local_steps=3, batch_size=4, seed=5)


def digits(num=1000, classes=10):
  """Labels in turn, and the row number as the image."""
  return {"image": np.arange(num), "label": np.arange(num) % classes}


def pseudo_writers(alpha=0.3, seed=0, **changes):
  """Clients by Dirichlet."""
  settings = dict(num_clients=50, examples_per_client=20)
  rng = np.random.default_rng(seed)
  return clients.from_labels(
    digits(), alpha=alpha, rng=rng, **{**settings, **changes}
  )


def test_a_fingerprint_tells_who_holds_what():
  arrays = {"x": np.ones((4, 2), np.float32), "label": np.arange(4)}
  made = lambda rows, names=None, **changes: clients.ClientData(
    {**arrays, **changes}, rows, names=names
  ).fingerprint(b"secret")
  rows = [[0, 1], [2, 3]]
  same, near = made(rows), made(rows, x=arrays["x"] * (1 + 1e-7))
  assert same == near == made(rows, label=np.arange(4, dtype=np.int32))
  others = [
    made([[0], [1, 2, 3]]),
    made([[0, 1], [3, 2]]),
    made(rows, names=["a", "b"]),
    made(rows, label=np.arange(4) + 1),
    made(rows, x=arrays["x"][:, :1]),
    clients.ClientData(arrays, rows).fingerprint(b"other"),
  ]
  assert len({same, *others}) == 7


@pytest.mark.parametrize("alpha", [1e-3, 0.3, 100.0])
def test_pseudo_writers_hold_each_example_once(alpha):
  data = pseudo_writers(alpha)
  assert len(data) == 50 and (data.sizes == 20).all()
  assert np.array_equal(np.sort(data.pooled()["image"]), np.arange(1000))
  again = pseudo_writers(alpha)
  assert all(np.array_equal(a, b) for a, b in zip(data.rows, again.rows))


def test_alpha_says_how_mixed_the_writers_are():
  kinds = [
    np.mean([len(set(data.client(i)["label"])) for i in range(20)])
    for data in (pseudo_writers(a, num_clients=20) for a in (1e-3, 0.3, 1e3))
  ]
  assert kinds[0] < 1.5 < kinds[1] < 6 < 8 < kinds[2]


def test_users_keep_the_order_of_their_rows():
  keys = ["bo", "al", "bo", "cy", "al", "bo"]
  data = clients.from_keys({"x": np.arange(6)}, keys, max_examples=2)
  assert data.names == ["al", "bo", "cy"]
  found = [data.client(i)["x"].tolist() for i in range(3)]
  assert found == [[1, 4], [0, 2], [3]]


def test_whole_clients_are_held_out():
  data = pseudo_writers()
  kept, held = clients.split_clients(data, 10, rng=np.random.default_rng(0))
  assert len(kept) == 40 and len(held) == 10
  assert not set(kept.names) & set(held.names)
  both = np.concatenate([kept.pooled()["image"], held.pooled()["image"]])
  assert len(set(both)) == 1000


def ragged():
  """Clients with 1, 5 and 20 examples."""
  rows = [[0], np.arange(1, 6), np.arange(6, 26)]
  x = np.arange(1, 27, dtype=np.float32)
  return clients.ClientData({"x": x, "z": np.stack([x, x], 1)}, rows)


def test_a_cohort_holds_each_example_once_and_zeros_elsewhere():
  batch = cohorts.cohort(
    ragged(), [1, 0, 1], [1, 1, 0], round_index=0, **SETTINGS
  )
  assert batch["x"].shape == (3, 3, 4) and batch["z"].shape == (3, 3, 4, 2)
  assert batch["client_mask"].tolist() == [1, 1, 0]
  assert batch["mask"].sum(axis=(1, 2)).tolist() == [5, 1, 0]
  assert batch["mask"][0].sum(axis=1).tolist() == [4, 1, 0]
  there = batch["mask"][0] == 1
  assert sorted(batch["x"][0][there]) == [2, 3, 4, 5, 6]
  assert not batch["x"][batch["mask"] == 0].any()
  assert not batch["z"][batch["mask"] == 0].any()
  assert np.array_equal(batch["z"][..., 0], batch["x"])


def test_large_clients_are_cut_and_epochs_are_whole():
  batch = cohorts.cohort(ragged(), [2], round_index=0, **SETTINGS)
  assert batch["mask"].all() and len(set(batch["x"].ravel())) == 12
  settings = dict(SETTINGS, local_steps=6)
  batch = cohorts.cohort(ragged(), [1], round_index=0, num_epochs=3, **settings)
  assert batch["mask"][0].sum(axis=1).tolist() == [4, 1, 4, 1, 4, 1]
  for epoch in range(3):
    piece = slice(2 * epoch, 2 * epoch + 2)
    found = batch["x"][0, piece][batch["mask"][0, piece] == 1]
    assert sorted(found) == [2, 3, 4, 5, 6]


def sampler(k):
  """Two clients and padding, another order in odd rounds."""
  return np.array([2, 1, 0, 0][:: 1 - 2 * (k % 2)]), np.array([1, 1, 1, 0])


def test_cohorts_are_a_function_of_the_round():
  data = ragged()
  read = cohorts.cohorts(data, sampler, num_rounds=4, **SETTINGS)
  whole, late = list(read(0)), list(read(2))
  assert len(whole) == 4 and len(late) == 2
  for a, b in zip(whole[2:], late):
    assert all(np.array_equal(a[n], b[n]) for n in a)
  assert not np.array_equal(whole[0]["x"][0], whole[2]["x"][0])
  other = cohorts.cohorts(data, sampler, **{**SETTINGS, "seed": 6})
  assert not np.array_equal(next(other(0))["x"], whole[0]["x"])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_have_the_whole_cohort(count):
  data = ragged()
  whole = next(cohorts.cohorts(data, sampler, **SETTINGS)(1))
  parts = [
    next(
      cohorts.cohorts(
        data, sampler, process_index=p, process_count=count, **SETTINGS
      )(1)
    )
    for p in range(count)
  ]
  for name, value in whole.items():
    together = np.concatenate([p[name] for p in parts])
    np.testing.assert_array_equal(together, value)


def test_text_becomes_sentences_of_numbers(tmp_path):
  texts = {
    "ann": ["Go home. Go now!", "I'll stay; you go"],
    "bob": ["Home"],
    "cyd": [""],
  }
  vocabulary = words.build_vocabulary(["go go home home now", "."], size=3)
  assert vocabulary.words[4:] == ("go", "home", ".")
  data = client_texts.from_texts(texts, vocabulary, length=4)
  assert data.names == ["ann", "bob"] and data.sizes.tolist() == [4, 1]
  assert data.client(0)["tokens"].tolist() == [
    [2, 4, 5, 6, 3],
    [2, 4, 1, 1, 3],
    [2, 1, 1, 1, 3],
    [2, 1, 4, 3, 0],
  ]
  assert vocabulary.decode([2, 4, 1, 3, 0]) == "go <oov>"
  short = client_texts.from_texts(
    texts, vocabulary, length=2, max_sentences=2, min_sentences=2
  )
  assert short.names == ["ann"] and short.sizes.tolist() == [2]
  assert short.client(0)["tokens"].tolist() == [[2, 4, 5], [2, 4, 1]]
  vocabulary.save(tmp_path / "v.txt")
  assert words.load_vocabulary(tmp_path / "v.txt") == vocabulary


def test_roles_come_from_json_lines(tmp_path):
  rows = [
    {"play": "Lear", "role": "FOOL", "speeches": ["Nuncle.", "Ay."]},
    {"play": "Lear", "role": "KENT", "speeches": ["No."]},
    {"play": "Hamlet", "role": "FOOL", "speeches": ["So."]},
  ]
  path = tmp_path / "roles.jsonl.gz"
  with gzip.open(path, "wt", encoding="utf-8") as f:
    f.write("\n".join(map(json.dumps, rows)))
  assert client_texts.shakespeare_by_role(path) == {
    "Lear/FOOL": ["Nuncle.", "Ay."],
    "Lear/KENT": ["No."],
    "Hamlet/FOOL": ["So."],
  }
  source = sources.ListSource(
    [{"who": b"a", "body": b"x"}, {"who": b"a", "body": b"y"}]
  )
  assert client_texts.texts_by_key(source, key="who", text="body") == {
    "a": ["x", "y"]
  }


def test_a_speech_of_several_paragraphs_stays_whole():
  script = "Prologue\n\nA:\nOne\ntwo.\n\nthree.\n\nB:\nFour.\n"
  assert client_texts.texts_of_script(script) == {
    "A": ["One\ntwo.", "three."],
    "B": ["Four."],
  }


@pytest.mark.parametrize(
  ("by", "names"),
  [
    ("file", ["a/x.txt", "a/y.txt.gz", "z.md"]),
    ("folder", [".", "a"]),
    ("top", ["a", "z.md"]),
  ],
)
def test_any_folder_of_text_files_serves(tmp_path, by, names):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x.txt").write_text("One.")
  (tmp_path / "a" / "y.txt.gz").write_bytes(gzip.compress(b"Two."))
  (tmp_path / "z.md").write_text("Three.")
  (tmp_path / "skip.bin").write_text("no")
  found = client_texts.texts_of_folder(tmp_path, clients=by)
  assert sorted(found) == names
  assert sorted(sum(found.values(), [])) == ["One.", "Three.", "Two."]


@pytest.mark.real_data
def test_shakespeare_has_its_roles(data_dir):
  path = data_dir / "text" / "shakespeare_by_role.jsonl.gz"
  texts = client_texts.shakespeare_by_role(path)
  assert len(texts) == 1339
  every = (speech for speeches in texts.values() for speech in speeches)
  vocabulary = words.build_vocabulary(every, size=4000)
  data = client_texts.from_texts(texts, vocabulary, min_sentences=2)
  assert len(data) > 1100 and data.sizes.max() == 256
  tokens = data.pooled()["tokens"]
  assert tokens.shape[1] == 21
  known = tokens[tokens > words.EOS].size
  assert np.sum(tokens == words.OOV) < 0.1 * known


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: clients.ClientData({"x": np.ones(3)}, [[0], []]), "holds 0 rows"),
    (lambda: clients.ClientData({"x": np.ones(3)}, [[3]]), "in \\[0, 2\\]"),
    (lambda: clients.ClientData({"mask": np.ones(3)}, [[0]]), "'mask'"),
    (
      lambda: clients.ClientData({"x": np.ones(3)}, [[0], [1]], names="aa"),
      "distinct names",
    ),
    (lambda: ragged().client(3), "client=3"),
    (lambda: ragged().client(-1), "client=-1"),
    (lambda: pseudo_writers(alpha=0), "alpha=0"),
    (lambda: pseudo_writers(num_clients=51), "num_clients=51"),
    (lambda: clients.from_keys({"x": np.ones(3)}, ["a"]), "keys has shape"),
    (lambda: words.Vocabulary(["a", "a"]), "twice"),
    (lambda: words.Vocabulary(["<pad>"]), "twice"),
    (lambda: words.build_vocabulary([""], size=3), "at least one"),
    (
      lambda: cohorts.cohort(ragged(), [7], round_index=0, **SETTINGS),
      "client=7",
    ),
    (
      lambda: clients.split_clients(ragged(), 3, rng=None),
      "num_held_out=3",
    ),
    (
      lambda: next(
        cohorts.cohorts(ragged(), sampler, process_count=3, **SETTINGS)(0)
      ),
      "cohort=4",
    ),
    (
      lambda: client_texts.texts_by_key(
        sources.ListSource([{"a": "b"}]), key="who", text="a"
      ),
      "who",
    ),
    (
      lambda: client_texts.from_texts(
        {"a": []}, words.Vocabulary(["a"]), min_sentences=1
      ),
      "min_sentences=1",
    ),
  ],
)
def test_bad_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="no_such"):
    client_texts.texts_of_folder(tmp_path / "no_such")
  with pytest.raises(ValueError, match="no files"):
    client_texts.texts_of_folder(tmp_path)
