"""Weights of other programs: each format is written here, and read back.

The writers below state each format's names by themselves; that the programs
write such files, `scripts/check_vit_weights.py` shows with the programs.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from locojax.core import files, trees
from locojax.nn import transformer, vit, vit_formats, vit_positions, vit_weights

WIDTH, HEADS, HIDDEN, LAYERS, PATCH = 8, 2, 16, 2, 4
SETTINGS = dict(
  patch_size=PATCH,
  width=WIDTH,
  num_layers=LAYERS,
  num_heads=HEADS,
  hidden_size=HIDDEN,
)
QKV = ("query", "key", "value")


@pytest.fixture(scope="module")
def params():
  """Random parameters for images of 12 x 12: 9 patches and [cls]."""
  model = vit.ViT(**SETTINGS)
  init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
  shapes = jax.eval_shape(init)["params"]
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  return jax.tree.map(draw, shapes)


def _head():
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {"kernel": draw(WIDTH, 5), "bias": draw(5)}


def _jax_block(block, norms, attention, mlp):
  out = {}
  for name, ours in zip(norms, ("attention_norm", "feed_forward_norm")):
    out[f"{name}/scale"], out[f"{name}/bias"] = (
      block[ours]["scale"],
      block[ours]["bias"],
    )
  for name in QKV:
    kernel = block["attention"][name]["kernel"]
    bias = block["attention"][name]["bias"]
    out[f"{attention}/{name}/kernel"] = kernel.reshape(WIDTH, HEADS, -1)
    out[f"{attention}/{name}/bias"] = bias.reshape(HEADS, -1)
  kernel = block["attention"]["out"]["kernel"]
  out[f"{attention}/out/kernel"] = kernel.reshape(HEADS, -1, WIDTH)
  out[f"{attention}/out/bias"] = block["attention"]["out"]["bias"]
  for i, ours in enumerate(("up", "down")):
    for part in ("kernel", "bias"):
      out[f"{mlp}/Dense_{i}/{part}"] = block["feed_forward"][ours][part]
  return out


def _jax_outer(params):
  head = _head()
  return {
    "embedding/kernel": params["patches"]["projection"]["kernel"],
    "embedding/bias": params["patches"]["projection"]["bias"],
    "cls": params["cls"],
    "Transformer/encoder_norm/scale": params["encoder"]["norm"]["scale"],
    "Transformer/encoder_norm/bias": params["encoder"]["norm"]["bias"],
    "head/kernel": head["kernel"],
    "head/bias": head["bias"],
  }


def augreg(params):
  out = _jax_outer(params)
  table = params["pos_embedding"]
  out["Transformer/posembed_input/pos_embedding"] = table
  for i in range(LAYERS):
    block = _jax_block(
      params["encoder"][f"block_{i}"],
      ("LayerNorm_0", "LayerNorm_2"),
      "MultiHeadDotProductAttention_1",
      "MlpBlock_3",
    )
    at = f"Transformer/encoderblock_{i}"
    out |= {f"{at}/{name}": x for name, x in block.items()}
  return out


def original(params):
  out = augreg(params)
  out["pre_logits/kernel"] = np.eye(WIDTH, dtype=np.float32)
  out["pre_logits/bias"] = np.zeros(WIDTH, np.float32)
  return out


def _bv_blocks(params):
  return [
    _jax_block(
      params["encoder"][f"block_{i}"],
      ("LayerNorm_0", "LayerNorm_1"),
      "MultiHeadDotProductAttention_0",
      "MlpBlock_0",
    )
    for i in range(LAYERS)
  ]


def big_vision(params):
  """Positions of the patches alone; the row of [cls] is in `cls`."""
  out = _jax_outer(params)
  out["pos_embedding"] = params["pos_embedding"][:, 1:]
  out["cls"] = params["cls"] + params["pos_embedding"][:, :1]
  for i, block in enumerate(_bv_blocks(params)):
    at = f"Transformer/encoderblock_{i}"
    out |= {f"{at}/{name}": x for name, x in block.items()}
  return out


def big_vision_stacked(params):
  """With the prefix, optimiser state and attention pooling of a checkpoint."""
  out = {n: x for n, x in big_vision(params).items() if "encoderblock" not in n}
  blocks = _bv_blocks(params)
  for name in blocks[0]:
    stacked = np.stack([block[name] for block in blocks])
    out[f"Transformer/encoderblock/{name}"] = stacked
  pool = "MAPHead_0/MultiHeadDotProductAttention_0/query/bias"
  out |= {"MAPHead_0/probe": np.ones((1, 1, 8)), pool: np.ones((4, 2))}
  out = {f"params/{name}": x for name, x in out.items()}
  return out | {"opt/0/count": np.array(3), "opt/0/mu/cls": np.ones((1, 1, 8))}


def _torch(names, params, joined):
  """Linear layers and norms of a torch format, by the names of ours."""
  out = {}

  def linear(name, layer):
    out[f"{name}.weight"], out[f"{name}.bias"] = (
      layer["kernel"].T,
      layer["bias"],
    )

  def norm(name, layer):
    out[f"{name}.weight"], out[f"{name}.bias"] = layer["scale"], layer["bias"]

  conv = params["patches"]["projection"]
  out[f"{names['conv']}.weight"] = conv["kernel"].transpose(3, 2, 0, 1)
  out[f"{names['conv']}.bias"] = conv["bias"]
  norm(names["norm"], params["encoder"]["norm"])
  for i in range(LAYERS):
    block = params["encoder"][f"block_{i}"]
    at = lambda name, i=i: names["block"].format(i) + names[name]
    norm(at("before"), block["attention_norm"])
    norm(at("after"), block["feed_forward_norm"])
    attention, mlp = block["attention"], block["feed_forward"]
    if joined:
      both = {
        part: np.concatenate([attention[n][part] for n in QKV], axis=-1)
        for part in ("kernel", "bias")
      }
      linear(at("qkv"), both)
    else:
      for name in QKV:
        linear(at(name), attention[name])
    linear(at("out"), attention["out"])
    linear(at("up"), mlp["up"])
    linear(at("down"), mlp["down"])
  return out


def timm(params):
  names = dict(
    conv="patch_embed.proj",
    norm="norm",
    block="blocks.{}.",
    before="norm1",
    after="norm2",
    qkv="attn.qkv",
    out="attn.proj",
    up="mlp.fc1",
    down="mlp.fc2",
  )
  out = _torch(names, params, joined=True)
  out |= {"cls_token": params["cls"], "pos_embed": params["pos_embedding"]}
  head = _head()
  return out | {"head.weight": head["kernel"].T, "head.bias": head["bias"]}


def huggingface(params):
  names = dict(
    conv="embeddings.patch_embeddings.projection",
    norm="layernorm",
    block="encoder.layer.{}.",
    before="layernorm_before",
    after="layernorm_after",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    out="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
  )
  out = _torch(names, params, joined=False)
  out["embeddings.cls_token"] = params["cls"]
  out["embeddings.position_embeddings"] = params["pos_embedding"]
  return out


def huggingface_classifier(params):
  out = {f"vit.{name}": x for name, x in huggingface(params).items()}
  head = _head()
  out |= {"classifier.weight": head["kernel"].T}
  return out | {"classifier.bias": head["bias"]}


def huggingface_pooler(params):
  square = np.eye(WIDTH, dtype=np.float32)
  return huggingface(params) | {
    "pooler.dense.weight": square,
    "pooler.dense.bias": square[0],
    "embeddings.mask_token": square[None, :1],
  }


# Writer, its format, whether a head of one layer is in the file.
FILES = {
  original: ("original", False),
  augreg: ("original", True),
  big_vision: ("big_vision", True),
  big_vision_stacked: ("big_vision_stacked", False),
  timm: ("timm", True),
  huggingface: ("huggingface", False),
  huggingface_classifier: ("huggingface", True),
  huggingface_pooler: ("huggingface", False),
}
writers = pytest.mark.parametrize("writer", FILES, ids=lambda w: w.__name__)


def _write(path, tensors):
  """A file of the kind that the names are from."""
  if any("/" in name for name in tensors):
    path = path.with_suffix(".npz")
    np.savez(path, **tensors)
    return path
  header, data = {}, b""
  for name, x in tensors.items():
    content = np.ascontiguousarray(x, "<f4").tobytes()
    ends = [len(data), len(data) + len(content)]
    header[name] = {"dtype": "F32", "shape": x.shape, "data_offsets": ends}
    data += content
  path = path.with_suffix(".safetensors")
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return path


def _summed(params, writer):
  """Parameters as a format holds them: sums of [cls] and its position."""
  if not writer.__name__.startswith("big_vision"):
    return params
  table = params["pos_embedding"].copy()
  cls = params["cls"] + table[:, :1]
  table[:, 0] = 0
  return {**params, "cls": cls, "pos_embedding": table}


def _same(got, want):
  got, want = trees.flatten(got), trees.flatten(want)
  assert set(got) == set(want)
  for name, x in want.items():
    np.testing.assert_array_equal(got[name], x, err_msg=name)
    assert got[name].dtype == np.float32


@writers
def test_files_of_each_format_become_our_parameters(tmp_path, params, writer):
  path = _write(tmp_path / "vit", writer(params))
  loaded = vit_weights.load_vit(path, num_heads=HEADS)
  _same(loaded.params, _summed(params, writer))
  assert loaded.head is None
  format, _ = FILES[writer]
  assert loaded.settings == {
    **SETTINGS,
    "use_cls": True,
    "image_size": (12, 12),
    **vit_weights.vit_settings(format),
  }
  again = vit_weights.load_vit(
    path, format=format, num_heads=HEADS, image_size=12, patch_size=PATCH
  )
  _same(again.params, loaded.params)


@writers
def test_heads_are_given_or_refused(params, writer):
  read = lambda: vit_weights.from_tensors(
    tensors, num_heads=HEADS, drop_head=False
  )
  tensors = {n: x for n, x in writer(params).items() if "opt/" not in n}
  if FILES[writer][1]:
    _same(read().head, _head())
    return
  named = {
    original: "extra: pre_logits/bias, pre_logits/kernel",
    big_vision_stacked: "extra: MAPHead_0/MultiHead.*MAPHead_0/probe",
    huggingface: "missing: classifier.bias, classifier.weight",
    huggingface_pooler: "missing: classifier.*extra: .*mask_token, pooler.*",
  }
  with pytest.raises(ValueError, match=named[writer]):
    read()


def test_settings_say_what_differs():
  settings = {f: vit_weights.vit_settings(f) for f in vit_weights.FORMATS}
  x = jnp.array([-1.0, 0.5])
  tanh = [-0.1588080, 0.3457140]
  exact = [-0.1586553, 0.3457312]
  for name, found in settings.items():
    torch = name in ("timm", "huggingface")
    got = found["activation"](x)
    np.testing.assert_allclose(got, exact if torch else tanh, rtol=1e-6)
    eps = 1e-12 if name == "huggingface" else 1e-6
    assert found["norm_eps"] == eps
  with pytest.raises(ValueError, match="format='flax'.*'original'"):
    vit_weights.vit_settings("flax")


def test_the_module_takes_what_was_loaded(params):
  loaded = vit_weights.from_tensors(timm(params), num_heads=HEADS)
  model = vit.ViT(**loaded.settings)
  images = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
  apply = lambda m: jax.jit(lambda p: m.apply({"params": p}, images))
  out = apply(model)(loaded.params)
  assert out.shape == (2, 10, WIDTH)
  stacked = transformer.stack_blocks(loaded.params["encoder"])
  scanned = apply(model.clone(scan=True))({**loaded.params, "encoder": stacked})
  np.testing.assert_allclose(scanned, out, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="image_size"):
    model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("way", vit_positions.WAYS)
@writers
def test_positions_are_resized_by_name(params, writer, way):
  tensors = {n: x for n, x in writer(params).items() if "opt/" not in n}
  loaded = vit_weights.from_tensors(
    tensors, num_heads=HEADS, image_size=(16, 20), resize=way
  )
  table = _summed(params, writer)["pos_embedding"]
  want = vit_positions.resize(table, (4, 5), way=way)
  got = loaded.params["pos_embedding"]
  assert got.shape == (1, 21, WIDTH)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(got[:, 0], table[:, 0])
  assert loaded.settings["image_size"] == (16, 20)


def test_files_without_cls(params):
  tensors = big_vision(params)
  del tensors["cls"]
  loaded = vit_weights.from_tensors(tensors, image_size=16)
  assert not loaded.settings["use_cls"] and "cls" not in loaded.params
  assert loaded.params["pos_embedding"].shape == (1, 16, WIDTH)
  # A grid that is no square is known by the images alone.
  tensors["pos_embedding"] = np.zeros((1, 6, WIDTH), np.float32)
  loaded = vit_weights.from_tensors(tensors, image_size=(8, 12))
  assert loaded.params["pos_embedding"].shape == (1, 6, WIDTH)
  with pytest.raises(ValueError, match=r"pos_embedding has \(1, 6, 8\), not"):
    vit_weights.from_tensors(tensors)


def test_checkpoints_of_flax_before_optax(tmp_path, params):
  tensors = {f"opt/target/{n}": x for n, x in big_vision(params).items()}
  tensors["opt/state/step"] = np.array(7)
  loaded = vit_weights.load_vit(_write(tmp_path / "vit", tensors))
  _same(loaded.params, _summed(params, big_vision))


def test_squares_are_preferred_where_a_row_for_cls_may_be_missing(params):
  tensors = big_vision(params)  # 9 rows: 3 x 3, not [cls] and 2 x 4
  loaded = vit_weights.from_tensors(tensors, image_size=(8, 16))
  table = _summed(params, big_vision)["pos_embedding"]
  want = vit_positions.resize(table, (2, 4))
  np.testing.assert_array_equal(loaded.params["pos_embedding"], want)


def test_positions_of_older_big_vision_files(params):
  tensors = big_vision(params)
  tensors["cls"] = params["cls"]
  del tensors["pos_embedding"]
  for name in ("Transformer/pos_embedding", vit_formats.OLD_POSITIONS[0]):
    given = {**tensors, name: params["pos_embedding"]}
    _same(vit_weights.from_tensors(given).params, params)


@writers
def test_all_that_is_wrong_is_in_one_error(params, writer):
  tensors = {n: x for n, x in writer(params).items() if "opt/" not in n}
  names = [n for n in tensors if "lock" in n or "layer." in n]
  missing, bent = names[0], names[-1]
  del tensors[missing]
  tensors[bent] = tensors[bent][..., :-1]
  tensors["another"] = np.zeros(3)
  tensors["params/second"] = np.zeros(3)
  with pytest.raises(ValueError) as caught:
    vit_weights.from_tensors(tensors, num_heads=HEADS, source="FILE")
  text = str(caught.value)
  strip = lambda name: name.removeprefix("params/").removeprefix("vit.")
  assert text.startswith(f"FILE of the format {FILES[writer][0]!r}: missing: ")
  assert f"missing: {strip(missing)};" in text
  assert f"ill-shaped: {strip(bent)} has {tensors[bent].shape}, not" in text
  assert "extra: another, " in text and "second" in text


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"cls": np.zeros((1, 2, 8))}, r"cls has \(1, 2, 8\), not \(1, 1, 8\)"),
    ({"embedding/kernel": np.zeros((4, 5, 3, 8))}, r"not \(4, 4, 3, 8\)"),
    ({"embedding/kernel": np.zeros(3)}, r"embedding/kernel has \(3,\)"),
    ({"pos_embedding": np.zeros((1, 8, 8))}, r"\(1, 1 \+ L, 8\)"),
    ({"pos_embedding": np.zeros((2, 9, 8))}, r"\(1, 1 \+ L, 8\)"),
    ({"pos_embedding": np.zeros((1, 9, 7))}, r"not \(1, 1 \+ L, 8\)"),
    ({"pos_embedding": np.zeros(9)}, r"pos_embedding has \(9,\)"),
    ({"pos_embedding": None}, "missing: pos_embedding"),
    ({"head/kernel": np.zeros((5, 8))}, r"head/kernel has \(5, 8\), not \(8,"),
    ({"head/bias": np.zeros((5, 1))}, r"head/bias has \(5, 1\)"),
  ],
)
def test_single_tensors_that_do_not_fit(params, change, words):
  tensors = {**big_vision(params), **change}
  tensors = {n: x for n, x in tensors.items() if x is not None}
  with pytest.raises(ValueError, match=words):
    vit_weights.from_tensors(tensors, drop_head=False)


def test_other_models_are_refused(tmp_path, params):
  path = _write(tmp_path / "other", {"conv1.weight": np.zeros((2, 2))})
  with pytest.raises(
    ValueError, match=r"other\.safetensors: of no format .*co"
  ):
    vit_weights.load_vit(path)
  # Hugging Face's names in memory, which are not those of its files.
  memory = {
    n.replace("encoder.layer.", "layers.").replace(
      "attention.attention.query", "attention.q_proj"
    ): x
    for n, x in huggingface(params).items()
  }
  with pytest.raises(ValueError, match="tensors: of no format known"):
    vit_weights.from_tensors(memory, num_heads=HEADS)
  layer_scale = {**timm(params), "blocks.0.ls1.gamma": np.zeros(8)}
  with pytest.raises(ValueError, match=r"extra: blocks\.0\.ls1\.gamma"):
    vit_weights.from_tensors(layer_scale, num_heads=HEADS)
  pooled = timm(params)  # timm's models with a norm after the mean
  for part in ("weight", "bias"):
    pooled[f"fc_norm.{part}"] = pooled.pop(f"norm.{part}")
  words = "missing: norm.bias, norm.weight; extra: fc_norm.bias, fc_norm.weight"
  with pytest.raises(ValueError, match=words):
    vit_weights.from_tensors(pooled, num_heads=HEADS)


def test_wrong_arguments_are_named(params):
  load = lambda writer, **k: vit_weights.from_tensors(writer(params), **k)
  with pytest.raises(
    ValueError, match="num_heads=None.*divisor of the width 8"
  ):
    load(timm)
  with pytest.raises(ValueError, match="num_heads=3"):
    load(huggingface, num_heads=3)
  with pytest.raises(ValueError, match="num_heads=4.*must be 2, that of the"):
    load(augreg, num_heads=4)
  with pytest.raises(ValueError, match=r"kernel has \(4, .*not \(8, 8, 3, 8\)"):
    load(augreg, patch_size=8)
  with pytest.raises(ValueError, match="image_size=18.*patch_size=4"):
    load(augreg, image_size=18)
  with pytest.raises(ValueError, match="resize='bilinear'"):
    load(augreg, resize="bilinear")
  with pytest.raises(ValueError, match="format='orignal'.*did you mean 'ori"):
    load(augreg, format="orignal")
  with pytest.raises(ValueError, match="drop_head='no'"):
    load(augreg, drop_head="no")


def test_saving_is_the_original_form(tmp_path, params):
  path = tmp_path / "new" / "vit.npz"
  assert vit_weights.save_vit_npz(path, params, num_heads=HEADS) == path
  found, want = files.read_arrays(path), augreg(params)
  want = {n: x for n, x in want.items() if not n.startswith("head/")}
  assert {n: x.shape for n, x in found.items()} == {
    n: x.shape for n, x in want.items()
  }
  for name, x in want.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)
  loaded = vit_weights.load_vit(path)
  _same(loaded.params, params)
  assert [p.name for p in path.parent.iterdir()] == ["vit.npz"]


def test_saving_takes_heads_stacked_blocks_and_no_cls(tmp_path, params):
  stacked = transformer.stack_blocks(params["encoder"])
  given = {**params, "encoder": stacked}
  del given["cls"]
  given["pos_embedding"] = given["pos_embedding"][:, 1:]
  path = tmp_path / "vit.npz"
  vit_weights.save_vit_npz(path, given, num_heads=HEADS, head=_head())
  loaded = vit_weights.load_vit(path, drop_head=False)
  _same(loaded.params["encoder"], params["encoder"])
  _same(loaded.head, _head())
  assert not loaded.settings["use_cls"]


def test_saving_what_is_no_vit_writes_nothing(tmp_path, params):
  bad = jax.tree.map(lambda x: x, params)
  del bad["encoder"]["block_1"]["attention"]["key"]["bias"]
  bad["head"] = _head()
  bad["encoder"]["norm"]["scale"] = np.zeros(7)
  path = tmp_path / "vit.npz"
  words = (
    r"missing: encoder/block_1/attention/key/bias; ill-shaped: encoder/norm"
    r"/scale has \(7,\), not \(8,\); extra: head/bias, head/kernel"
  )
  with pytest.raises(ValueError, match=words):
    vit_weights.save_vit_npz(path, bad, num_heads=HEADS)
  with pytest.raises(ValueError, match="width=8.*num_heads=3"):
    vit_weights.save_vit_npz(path, params, num_heads=3)
  assert not path.exists()
