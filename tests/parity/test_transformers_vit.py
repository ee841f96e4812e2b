"""Vision Transformers, their files, and a stage of S3T against Hugging Face's, in PyTorch."""

import math
import re
import warnings

import jax
import numpy as np
import pytest

from jaxunlearn.core import adapters, keys, tree
from jaxunlearn.exact import plan, prefixes, sliceable
from jaxunlearn.nn.images import vit
from jaxunlearn.nn.layers.norms import layer_norm

torch = pytest.importorskip("torch")
with warnings.catch_warnings():  # of the packages that transformers imports
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest entry
NETWORKS = {
    "square": {"image_size": 32, "num_channels": 3, "num_labels": 5, "num_hidden_layers": 4},
    "oblong": {"image_size": (24, 16), "num_channels": 1, "num_labels": 2, "num_hidden_layers": 3},
}


def build(name, kind="ViTForImageClassification"):
    """A small network of transformers whose every weight is random, biases and norms too."""
    common = {
        "patch_size": 8,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-6,
    }
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.ViTConfig(**common, **NETWORKS[name])).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            scale = 0.1 if value.ndim > 1 else 0.3
            value.normal_(1.0 if re.search("norm.*weight", key) else 0.0, scale)
    return model


@pytest.fixture(scope="module", params=NETWORKS)
def both(request, tmp_path_factory):
    """The network in transformers, and read from what that saved."""
    theirs = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, *vit.from_pretrained(folder)


def images(config, n=6):
    return np.random.default_rng(0).normal(size=(n, *config.image)).astype(np.float32)


def as_theirs(x):
    return torch.as_tensor(x.transpose(0, 3, 1, 2).copy())


def close(ours, theirs, tolerance=TOLERANCE):
    difference = np.abs(np.asarray(ours) - np.asarray(theirs)).max()
    assert difference <= tolerance * np.abs(np.asarray(theirs)).max(), difference


def state_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_config(both):
    theirs, config, _ = both
    size = theirs.config.image_size
    rows, columns = (size, size) if isinstance(size, int) else size
    assert config.image == (rows, columns, theirs.config.num_channels)
    assert config.n_classes == theirs.config.num_labels and config.eps == 1e-6


def test_logits_and_hidden_states(both):
    theirs, config, params = both
    x = images(config)
    with torch.no_grad():
        want = theirs(as_theirs(x), output_hidden_states=True)
    apply = jax.jit(vit.build(config).apply, static_argnames="stop_at")
    close(apply(params, {}, x)[0], want.logits)
    assert len(want.hidden_states) == config.n_layers + 1
    for layer, hidden in enumerate(want.hidden_states):
        close(apply(params, {}, x, stop_at=layer)[0], hidden)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_round_trip_through_their_files_and_ours(both, tmp_path, dtype, sharded):
    """Theirs, read by us, saved by us, read by them: the same bits and the same sizes."""
    theirs = type(both[0])(both[0].config).to(getattr(torch, dtype))
    theirs.load_state_dict(both[0].state_dict())
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB" if sharded else "1GB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == sharded
    config, params = vit.from_pretrained(tmp_path / "theirs", dtype=dtype)
    assert config == both[1]
    vit.save_pretrained(tmp_path / "ours", config, params)
    again, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "ours", dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(again) is type(theirs)
    want, got = state_of(theirs), state_of(again)
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def test_a_backbone(tmp_path):
    """What `ViTModel` saves: other names, a pooler, no output layer, and no number of labels."""
    theirs = build("oblong", "ViTModel")
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="n_classes is needed"):
        vit.from_pretrained(tmp_path)
    config, params = vit.from_pretrained(tmp_path, n_classes=7)
    assert params["head"]["kernel"].shape == (32, 7)
    x = images(config)
    with torch.no_grad():
        want = theirs(as_theirs(x)).last_hidden_state
    hidden = vit.build(config).apply(params, {}, x, stop_at=config.n_layers)[0]
    norm = params["norm"]
    close(layer_norm(hidden, norm["scale"], norm["bias"], config.eps), want)


# A stage of S3T


class Adapted(torch.nn.Module):
    """A linear layer plus (alpha / sqrt(r)) B A."""

    def __init__(self, base, a, b, alpha):
        super().__init__()
        self.base = base
        self.a, self.b = (torch.nn.Parameter(torch.tensor(one.T)) for one in (a, b))  # [out, in]
        self.scale = alpha / math.sqrt(a.shape[1])

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


def adapt(model, adapter, first, alpha):
    """Puts adapters on queries and values from layer `first` up; `q3` is that of layer 3."""
    kinds = {"q_proj": "q", "v_proj": "v", "query": "q", "value": "v"}
    found = {}
    for name, module in list(model.named_modules()):
        place = re.search(r"\blayers?\.(\d+)\..*\b(q_proj|v_proj|query|value)$", name)
        if place is None or int(place[1]) < first:
            continue
        kind, layer = kinds[place[2]], int(place[1])
        a, b = (adapter[f"layers/{kind}/kernel/lora_{m}"][layer - first] for m in "ab")
        parent, _, last = name.rpartition(".")
        found[f"{kind}{layer}"] = Adapted(module, a, b, alpha)
        setattr(model.get_submodule(parent), last, found[f"{kind}{layer}"])
    return found


def train_theirs(model, adapted, recipe, x, y):
    """Steps of AdamW on one batch, the rate falling linearly to 0; gives the losses."""
    model.requires_grad_(False)
    trained = [p for one in adapted.values() for p in (one.a, one.b)]
    trained += list(model.classifier.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, eps=1e-8, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / recipe.epochs)
    out = []
    for _ in range(recipe.epochs):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x).logits, y)
        loss.backward()
        optimizer.step()
        schedule.step()
        out.append(loss.item())
    return out


def test_one_stage_of_s3t(tmp_path):
    theirs = build("square")
    theirs.save_pretrained(tmp_path)
    config, base = vit.from_pretrained(tmp_path)
    network = sliceable.of_vit(config)
    recipe = plan.StageRecipe(
        rank=4, alpha=8.0, learning_rate=1e-3, epochs=3, batch_size=16, dropout=0.0
    )
    of = plan.Plan(orders=(((0,),),), capacity=16, recipe=recipe, layers_per_slice=2, seed=3)
    x = images(config, 16)
    y = np.random.default_rng(1).integers(0, 5, 16).astype(np.int32)
    slices = prefixes.arrange(of, {"x": x, "y": y}, np.zeros(16, int))
    stage = prefixes.train(network, base, of, slices)[0, (0,)]

    key = keys.fold(jax.random.key(of.seed), "exact")
    key = keys.fold(keys.fold(key, 0, 0), "adapter")
    fresh = tree.named(adapters.split(prefixes.window(network, base, of, 2, 4, key))[0])
    fresh = jax.tree.map(np.asarray, fresh)
    adapted = adapt(theirs, fresh, 2, recipe.alpha)
    assert sorted(adapted) == ["q2", "q3", "v2", "v3"]
    losses = train_theirs(theirs, adapted, recipe, as_theirs(x), torch.as_tensor(y).long())
    assert losses == sorted(losses, reverse=True)

    got = tree.named(stage["adapter"])
    for name, one in adapted.items():
        for matrix, want in (("a", one.a), ("b", one.b)):
            full = f"layers/{name[0]}/kernel/lora_{matrix}"
            own, before = got[full][int(name[1]) - 2], fresh[full][int(name[1]) - 2]
            want = want.detach().numpy().T
            moved = np.abs(want - before).max()
            assert moved > 5e-4
            np.testing.assert_allclose(own, want, rtol=0, atol=1e-6)
    for leaf, want in (("kernel", theirs.classifier.weight), ("bias", theirs.classifier.bias)):
        want = want.detach().numpy().T
        assert np.abs(want - base["head"][leaf]).max() > 5e-4
        np.testing.assert_allclose(stage["head"][leaf], want, rtol=0, atol=1e-6)
