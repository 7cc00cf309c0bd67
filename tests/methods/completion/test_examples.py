"""Examples, prompts and presets: worked numbers and what is never lost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.methods import completion
from locojax.methods.completion import examples

TEXT = "def f(x):\n    y = x + 1\n    return y\n"


class Characters:
  """A tokenizer of characters, to test prompts by."""

  pad, eos, mask, pre, suf, mid = range(6)
  vocab_size = 200

  def encode(self, text):
    return [ord(c) for c in text]

  def language(self, name):
    return 6


def test_worked_examples():
  make = completion.make_example
  assert make(TEXT, 14).target == "y = x + 1"
  assert make(TEXT, 14, 1).target == "y = x + 1\n    return y"
  assert make(TEXT, len(TEXT)).target == ""
  assert make(TEXT, 14, 99).target == TEXT[14:]
  assert make("a\r\nbc\r\n", 0).target == "a"
  assert make("a\r\nbc\r\n", 1, 1).target == "\r\nbc"
  assert make("a\r\nbc\r\n", 2).target == ""
  assert make("a\r\nbc\r\n", 2, 1).target == "\nbc"
  for offset in range(len(TEXT) + 1):
    for follow in (0, 1, 3):
      e = make(TEXT, offset, follow)
      assert e.prefix + e.target + e.suffix == TEXT and len(e.prefix) == offset
      assert not e.target or e.target.count("\n") <= follow
  with pytest.raises(ValueError, match="offset=38"):
    make(TEXT, len(TEXT) + 1)
  with pytest.raises(ValueError, match="language='pythn'.*python"):
    make(TEXT, 0, language="pythn")


@pytest.mark.parametrize("masking", completion.MASKINGS)
def test_drawn_examples_are_of_the_text(masking):
  rng = np.random.default_rng(0)
  text = TEXT * 5 + "a.bcd::e(12)\n"
  seen = set()
  for _ in range(200):
    e = completion.sample_example(text, rng, language="python", masking=masking)
    assert e.prefix + e.target + e.suffix == text and e.target
    seen.add(len(e.prefix))
    if masking == "whole_lines":
      assert not e.prefix.rpartition("\n")[2].strip()
    if masking == "identifier" and e.target.isidentifier():
      assert not e.suffix[:1].isidentifier()
  assert len(seen) > 10
  with pytest.raises(ValueError, match="blank"):
    completion.sample_example(" \n", rng, language="python")


def test_what_is_next_to_the_cursor_is_kept():
  tok = Characters()
  before, after = "abcdefgh" * 50, "ijklmnop" * 50
  for budget in (3, 9, 30):
    tokens = completion.input_tokens(
      before, after, "python", tok, max_tokens=budget
    )
    assert len(tokens) == budget and tokens[0] == 6
    at = tokens.index(tok.mask)
    left = "".join(map(chr, tokens[1:at]))
    right = "".join(map(chr, tokens[at + 1 :]))
    assert before.endswith(left) and after.startswith(right)
  assert completion.fit(100, 100, 40) == (30, 10)
  assert completion.fit(5, 100, 40) == (5, 35)
  assert completion.fit(100, 2, 40) == (38, 2)
  assert completion.fit(1, 2, 40) == (1, 2)
  psm, spm = (
    completion.fim_tokens("ab", "cd", "python", tok, max_tokens=99, order=o)
    for o in completion.ORDERS
  )
  a, b, c, d = map(ord, "abcd")
  assert psm == [6, tok.pre, a, b, tok.suf, c, d, tok.mid]
  assert spm == [6, tok.pre, tok.suf, c, d, tok.mid, a, b]


def test_the_middle_is_drawn_from_anywhere():
  rng = np.random.default_rng(1)
  found = [examples.fim_transform(TEXT, rng, rate=0.75) for _ in range(400)]
  assert all(f.prefix + f.middle + f.suffix == TEXT for f in found)
  count = {o: sum(f.order == o for f in found) for o in ("plain", "psm", "spm")}
  assert 70 < count["plain"] < 130 and abs(count["psm"] - count["spm"]) < 60
  with pytest.raises(ValueError, match="rate=1.5"):
    examples.fim_transform(TEXT, rng, rate=1.5)


def test_presets_have_the_parameters_of_their_formula():
  wanted = {
    "cpu_tiny": 1_935_616,
    "gpu_67m": 67_128_832,
    "gpu_167m": 166_758_144,
    "paper_0p5b": 495_531_008,
  }
  tokens = jnp.zeros((1, 2), jnp.int32)
  for name, number in wanted.items():
    sizes = completion.sizes(name)
    assert completion.num_parameters(**sizes) == number
    model = completion.encoder_decoder(
      name, max_inputs=8, max_targets=8, scan=name != "cpu_tiny"
    )
    shapes = jax.eval_shape(
      lambda m=model: m.init(jax.random.key(0), tokens, inputs=tokens)
    )["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == number
    if name == "cpu_tiny":
      assert shapes["encoder"]["relative"]["embedding"].shape == (32, 4)
  large = completion.sizes("t5_1_1_large")
  assert completion.num_parameters(**large, tied=False) == 783_150_080
  with pytest.raises(ValueError, match="preset='cpu'.*cpu_tiny"):
    completion.sizes("cpu")
