"""Tables of tensors: every layout and its inverse, to the bit, and what folders may look like."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxunlearn.core import mesh, tree
from jaxunlearn.nn.files import folder, reader, safetensors, writer
from jaxunlearn.nn.files.tables import (
    AS_IS,
    CONVOLUTION,
    LINEAR,
    Form,
    Row,
    Table,
    layer_rows,
    patches,
)
from tests.network_files import add_integers, assert_same, rewrite

FLOAT32 = np.dtype("float32")
CLIP_LAYER = {
    "attention_norm": "layer_norm1",
    "q": "self_attn.q_proj",
    "o": "self_attn.out_proj",
    "up": "mlp.fc1",
}
CLIP = Table(
    rows=(
        *layer_rows("embed/tokens", "text_model.embeddings.token_embedding"),
        *layer_rows("embed/positions", "text_model.embeddings.position_embedding"),
        *(
            row
            for ours, theirs in CLIP_LAYER.items()
            for row in layer_rows(f"layers/{ours}", f"text_model.encoder.layers.{{}}.{theirs}")
        ),
        *layer_rows("norm", "text_model.final_layer_norm"),
    ),
    ignore=r".*\.position_ids",
    prefix="text_model.",
)
POSITION_IDS = "text_model.embeddings.position_ids"


def random_tree(shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return tree.nested(
        {
            name: jnp.asarray(rng.normal(size=shape).astype(jnp.dtype(dtype)))
            for name, shape in shapes.items()
        }
    )


def text_encoder():
    layer = {
        "attention_norm": {"scale": (2, 6), "bias": (2, 6)},
        "q": {"kernel": (2, 6, 4), "bias": (2, 4)},
        "o": {"kernel": (2, 4, 6), "bias": (2, 6)},
        "up": {"kernel": (2, 6, 12), "bias": (2, 12)},
    }
    shapes = {f"layers/{name}/{end}": s for name, ends in layer.items() for end, s in ends.items()}
    shapes |= {"embed/tokens/table": (9, 6), "embed/positions/table": (5, 6)}
    return random_tree(shapes | {"norm/scale": (6,), "norm/bias": (6,)})


def save(path, params, table, **options):
    writer.save(path, writer.kernels(params), table, {}, **options)


def read(path, params, table, dtype=FLOAT32, **options):
    shapes = jax.eval_shape(lambda: params)
    tensors = folder.tensors(path, ignore=table.ignore, **options)
    return reader.read(path, tensors, table, shapes, dtype)


@pytest.fixture
def clip(tmp_path):
    save(tmp_path, text_encoder(), CLIP)
    add_integers(tmp_path / "model.safetensors", POSITION_IDS, np.arange(5)[None])
    return tmp_path


# What is left out


def test_integers_that_the_table_ignores(clip):
    """A CLIP text encoder, whose file has an I64 buffer of positions."""
    assert_same(read(clip, text_encoder(), CLIP), text_encoder())
    with pytest.raises(ValueError, match=f"tensor '{POSITION_IDS}' is I64; read are F64, F32"):
        folder.tensors(clip)


def test_names_without_the_prefix(clip):
    file = clip / "model.safetensors"
    stored = safetensors.tensors(file, ignore=CLIP.ignore)
    arrays = {name.removeprefix("text_model."): it[...] for name, it in stored.items()}
    with file.open("wb") as opened:
        layout = {name: (a.shape, a.dtype) for name, a in arrays.items()}
        safetensors.write(opened, layout, arrays.values())
    assert_same(read(clip, text_encoder(), CLIP), text_encoder())


# Folders


def test_variants(tmp_path):
    params, half = text_encoder(), jax.tree.map(lambda a: a.astype("float16"), text_encoder())
    save(tmp_path, half, CLIP)
    (tmp_path / "model.safetensors").rename(tmp_path / "model.fp16.safetensors")
    with pytest.raises(ValueError, match="there are model.fp16.safetensors; see `variant`"):
        read(tmp_path, params, CLIP)
    save(tmp_path, params, CLIP)
    assert_same(read(tmp_path, params, CLIP), params)
    read_half = read(tmp_path, params, CLIP, dtype=np.dtype("float16"), variant="fp16")
    assert_same(read_half, half)
    with pytest.raises(ValueError, match="neither model.bf16.safetensors nor"):
        read(tmp_path, params, CLIP, variant="bf16")


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize(
    "index", ["{}.safetensors.index.fp16.json", "{}.fp16.safetensors.index.json"]
)
def test_several_files_of_a_variant(tmp_path, stem, index):
    params = text_encoder()
    save(tmp_path, params, CLIP, stem=stem, max_shard_bytes=300)
    assert len(list(tmp_path.glob(f"{stem}-*-of-*.safetensors"))) > 3
    assert_same(read(tmp_path, params, CLIP), params)
    (tmp_path / f"{stem}.safetensors.index.json").rename(tmp_path / index.format(stem))
    assert_same(read(tmp_path, params, CLIP, variant="fp16"), params)
    with pytest.raises(ValueError, match="has no weights"):
        read(tmp_path, params, CLIP)


def test_an_ignored_tensor_may_be_in_an_index(tmp_path):
    params = text_encoder()
    save(tmp_path, params, CLIP, max_shard_bytes=300)
    index = tmp_path / "model.safetensors.index.json"
    record = json.loads(index.read_text())
    first = min(record["weight_map"].values())
    add_integers(tmp_path / first, POSITION_IDS, np.arange(5)[None])
    record["weight_map"][POSITION_IDS] = first
    index.write_text(json.dumps(record))
    assert_same(read(tmp_path, params, CLIP), params)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "unet.ckpt", "w.pt", "w.pth", "w.pkl"])
def test_pickles_are_refused_with_the_lines_that_convert_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="only pickled weights .*, which could run any code") as no:
        folder.tensors(tmp_path)
    first, load, store = str(no.value).splitlines()
    assert name in first or "model" not in name
    assert "torch.load(file, map_location='cpu', weights_only=True)" in load
    assert f"safetensors.torch.save_file(weights, '{tmp_path / 'model.safetensors'}')" in store


# Layouts


def stored_of(path):
    return {n: it[...] for n, it in safetensors.tensors(path / "model.safetensors").items()}


def test_layout_of_each_form(tmp_path):
    """By loops: what a tensor holds where."""
    shapes = {"conv/kernel": (2, 3, 4, 5), "patch/kernel": (2 * 2 * 3, 5), "line/kernel": (4, 6)}
    params = random_tree(shapes)
    rows = (
        Row("conv/kernel", "conv", CONVOLUTION),
        Row("patch/kernel", "patch", patches(2, 3)),
        Row("line/kernel", "line", LINEAR),
    )
    save(tmp_path, params, Table(rows))
    stored, leaves = stored_of(tmp_path), {n: np.asarray(a) for n, a in tree.named(params).items()}
    assert {n: a.shape for n, a in stored.items()} == {
        "conv": (5, 4, 2, 3),
        "patch": (5, 3, 2, 2),
        "line": (6, 4),
    }
    for row, column, into, out in np.ndindex(2, 3, 4, 5):
        assert (
            stored["conv"][out, into, row, column] == leaves["conv/kernel"][row, column, into, out]
        )
    for row, column, into, out in np.ndindex(2, 2, 3, 5):
        at = (row * 2 + column) * 3 + into
        assert stored["patch"][out, into, row, column] == leaves["patch/kernel"][at, out]
    np.testing.assert_array_equal(stored["line"], leaves["line/kernel"].T)


FUSED = Table(
    tuple(
        Row(f"layers/{name}/{end}", f"h.{{}}.qkv.{theirs}", form)
        for name in "qkv"
        for end, theirs, form in (("kernel", "weight", LINEAR), ("bias", "bias", AS_IS))
    )
)


def test_split_of_a_fused_tensor(tmp_path):
    """Queries, keys and values of unequal widths in one tensor, for each layer."""
    widths = {"q": 6, "k": 2, "v": 4}
    shapes = {f"layers/{x}/kernel": (2, 3, width) for x, width in widths.items()}
    params = random_tree(shapes | {f"layers/{x}/bias": (2, width) for x, width in widths.items()})
    save(tmp_path, params, FUSED)
    stored = stored_of(tmp_path)
    assert stored["h.1.qkv.weight"].shape == (12, 3) and stored["h.0.qkv.bias"].shape == (12,)
    layers = params["layers"]
    np.testing.assert_array_equal(stored["h.1.qkv.weight"][6:8], layers["k"]["kernel"][1].T)
    np.testing.assert_array_equal(stored["h.1.qkv.bias"][8:], layers["v"]["bias"][1])
    assert_same(read(tmp_path, params, FUSED), params)
    rewrite(tmp_path / "model.safetensors", lambda a: a | {"h.1.qkv.bias": np.ones(9, "<f4")})
    with pytest.raises(ValueError, match=r"\[9\]; \[12\] is needed for 'layers/q/bias', 'layers/k"):
        read(tmp_path, params, FUSED)
    layers["k"]["bias"] = layers["k"]["bias"].astype("float16")
    with pytest.raises(ValueError, match="they are one tensor of the file, of one type"):
        save(tmp_path / "other", params, FUSED)
    assert not (tmp_path / "other").exists()


def test_tables_that_do_not_fit():
    a, b = jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3, 2), "float32")
    with pytest.raises(ValueError, match="no row of the table is for the leaf 'b'"):
        Table((Row("a", "t"),)).places({"a": a, "b": b})
    with pytest.raises(ValueError, match="'a', 'b' are one tensor 't' .* do not fit together"):
        Table((Row("a|b", "t"),)).places({"a": a, "b": b})
    scalar = jax.ShapeDtypeStruct((), "float32")
    with pytest.raises(ValueError, match="'a', 'b' are one tensor 't' .* do not fit together"):
        Table((Row("a|b", "t"),)).places({"a": scalar, "b": scalar})
    with pytest.raises(ValueError, match=r"a leaf of shape \[2, 3\] has no view \[4, -1\]"):
        Table((Row("a", "t", Form(view=(4, -1))),)).places({"a": a})


SIZE = st.integers(1, 4)


@st.composite
def entries(draw, number):
    """Rows of one tensor, stacked or not, whole or in pieces, and the shapes of its leaves."""
    kind = draw(st.sampled_from(["scalar", "as is", "linear", "convolution", "patches", "view"]))
    is_stacked, n_layers = draw(st.booleans()), draw(SIZE)
    pieces = 1 if kind == "scalar" else draw(st.integers(1, 3))
    side, channels, rest = draw(st.integers(1, 2)), draw(SIZE), draw(st.lists(SIZE, max_size=2))
    rows, shapes = [], {}
    for piece in range(pieces):
        out = draw(SIZE)
        form, shape = {
            "scalar": (AS_IS, ()),
            "as is": (AS_IS, (out, *rest)),
            "linear": (LINEAR, (channels, out)),
            "convolution": (CONVOLUTION, (side, 2, channels, out)),
            "patches": (patches(side, channels), (side * side * channels, out)),
            "view": (Form(view=(1, -1, channels)), (3, channels)),
        }[kind]
        tensor = rf"\1.{{}}.{kind}" if is_stacked else rf"\1.{kind}"
        rows.append(Row(rf"(t{number})/{pieces - piece}", tensor, form))
        shapes[f"t{number}/{pieces - piece}"] = (n_layers, *shape) if is_stacked else shape
    return rows, shapes


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_random_tables_round_trip(tmp_path_factory, data):
    """Bits, in any number of files; and any block of a leaf is read by itself."""
    path = tmp_path_factory.mktemp("random")
    rows, shapes = [], {}
    for number in range(data.draw(st.integers(1, 4))):
        more_rows, more_shapes = data.draw(entries(number))
        rows, shapes = rows + more_rows, shapes | more_shapes
    dtype = data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    table, params = Table(tuple(rows)), random_tree(shapes, dtype)
    save(path, params, table, max_shard_bytes=data.draw(st.sampled_from([1, 50, 10**6])))
    assert_same(read(path, params, table, jnp.dtype(dtype)), params)
    assert_same(read(path, params, table, None), params)
    tensors, leaves = folder.tensors(path), tree.named(params)
    for place in table.places(leaves):
        for piece in place.pieces:
            leaf = np.asarray(leaves[piece.leaf])
            stored = [tensors[name] for name in place.tensors]
            block = reader.read_blocks(place, piece, stored, leaf.shape, leaf.dtype)
            bounds = [
                sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
                for n in leaf.shape
            ]
            index = tuple(slice(*pair) for pair in bounds)
            np.testing.assert_array_equal(block(index), leaf[index])


def test_over_a_mesh(tmp_path):
    params = text_encoder()
    save(tmp_path, params, CLIP)
    devices = mesh.make({"data": 1, "model": 1})
    layout = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
    shapes = jax.eval_shape(lambda: params)
    layouts = jax.tree.map(lambda _: layout, params)
    tensors = folder.tensors(tmp_path)
    laid = reader.read(tmp_path, tensors, CLIP, shapes, FLOAT32, layouts)
    assert_same(laid, params)
    assert all(leaf.sharding == layout for leaf in jax.tree.leaves(laid))
