"""Methods that filter and weight samples, against the same formulas in PyTorch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
from torch.nn import functional  # noqa: E402

from benchmarks.peers import torch_networks, torch_tta  # noqa: E402
from jaxunlearn import nn, tta  # noqa: E402

BATCH, K = 16, 10
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(76, 16, 16, 3)).astype("float32")  # the last batch has 12
SOURCE = RNG.uniform(size=(BATCH, 16, 16, 3)).astype("float32"), np.arange(BATCH) % K
MODEL = nn.wide_resnet(10, 1)
WINDOW = {"aug_type": "occ", "occlusion_size": 6, "row_start": 3, "column_start": 4}


def network(sureness):
    """Parameters whose logits are so many times larger than drawn."""
    params, stats = MODEL.init(jax.random.key(1))
    params["head"]["kernel"] = params["head"]["kernel"] * sureness
    stats = jax.tree.map(lambda leaf: leaf + 0.05, stats)
    return params, stats


def flip(key, images):
    return images[:, :, ::-1]


def entropy(logits):
    return torch_tta.entropy_of(logits, logits)


def norms_of(net):
    net.requires_grad_(False)
    layers = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return [p.requires_grad_(True) for m in layers for p in m.parameters()]


class Eata:
    """Entropy of sure and new samples, with the Fisher penalty."""

    def __init__(self, net, alpha):
        self.net = torch_tta.by_batch(net)
        self.params, self.alpha, self.average = norms_of(net), alpha, None
        self.rule = torch.optim.Adam(self.params, 1e-3)
        self.first = [p.detach().clone() for p in self.params]
        logits = net(torch_tta.images(SOURCE[0]))
        loss = functional.cross_entropy(logits, logits.argmax(1))
        self.fisher = [g**2 for g in torch.autograd.grad(loss, self.params)]

    def __call__(self, x):
        logits = self.net(x)
        p, h, most = logits.softmax(1).detach(), entropy(logits), 0.4 * np.log(K)
        kept = h < most
        if self.average is not None:
            kept &= functional.cosine_similarity(self.average[None], p).abs() < 0.4
        if kept.any():
            loss = (h * torch.exp(most - h.detach()))[kept].mean()
            pairs = zip(self.fisher, self.params, self.first, strict=True)
            loss = loss + self.alpha * sum((f * (q - o) ** 2).sum() for f, q, o in pairs)
            self.rule.zero_grad()
            loss.backward()
            self.rule.step()
            new = p[kept].mean(0)
            self.average = new if self.average is None else 0.9 * self.average + 0.1 * new
        return logits.detach()


class Sar:
    """Sharpness-aware entropy of sure samples."""

    def __init__(self, net):
        self.net, self.params = torch_tta.by_batch(net), norms_of(net)
        self.rule = torch.optim.SGD(self.params, 1e-3, momentum=0.9)

    def __call__(self, x):
        logits, most = self.net(x), 0.4 * np.log(K)
        h = entropy(logits)
        kept = h < most
        grads = torch.autograd.grad((h * kept).sum() / kept.sum().clamp(1), self.params)
        norm = torch.sqrt(sum((g**2).sum() for g in grads)) + 1e-12
        before = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p, g in zip(self.params, grads, strict=True):
                p.add_(0.05 * g / norm)
        h = entropy(self.net(x))
        kept = kept & (h < most)
        self.rule.zero_grad()
        ((h * kept).sum() / kept.sum().clamp(1)).backward()
        with torch.no_grad():
            for p, old in zip(self.params, before, strict=True):
                p.copy_(old)
        self.rule.step()
        return logits.detach()


class Deyo:
    """Entropy of sure samples whose answer hangs on a window."""

    def __init__(self, net):
        self.net, self.params = torch_tta.by_batch(net), norms_of(net)
        self.rule = torch.optim.Adam(self.params, 1e-3)

    def __call__(self, x):
        logits = self.net(x)
        h = entropy(logits)
        sure = torch.where(h < 0.5 * np.log(K))[0]
        if len(sure) > 1:
            hidden = x[sure].clone()
            hidden[:, :, 3:9, 4:10] = hidden.mean((2, 3), keepdim=True)
            with torch.no_grad():
                p, q = logits[sure].softmax(1), self.net(hidden).softmax(1)
            answer = p.argmax(1, keepdim=True)
            drop = (p.gather(1, answer) - q.gather(1, answer))[:, 0]
            kept = drop > 0.2
            if kept.any():
                h, drop = h[sure][kept], drop[kept]
                weight = torch.exp(0.4 * np.log(K) - h.detach()) + torch.exp(drop)
                self.rule.zero_grad()
                (weight * h).mean().backward()
                self.rule.step()
        return logits.detach()


class Roid:
    """ROID, or with `filtering` CMF."""

    def __init__(self, net, filtering):
        self.net, self.params = torch_tta.by_batch(net), norms_of(net)
        self.rule = torch.optim.Adam(self.params, 1e-3)
        self.average, self.filtering = torch.full((K,), 1 / K), filtering
        self.first = [p.detach().clone() for p in self.params]
        self.hidden, self.variance = [p.clone() for p in self.first], 0.0

    def __call__(self, x):
        logits = self.net(x)
        p = logits.softmax(1).detach()
        unit = lambda v: (v - v.min()) / (v.max() - v.min())  # noqa: E731
        diverse = unit(1 - functional.cosine_similarity(self.average[None], p))
        kept = diverse >= diverse.mean()
        weight = torch.exp(3 * diverse * unit(-entropy(logits).detach()))[kept]
        self.average = 0.9 * self.average + 0.1 * p.mean(0)
        clipped = logits.softmax(1).clamp(0, 0.99)
        ratio = -(clipped * torch.log(clipped / (1 - clipped) + 1e-5)).sum(1)
        view = self.net(x[kept].flip(-1))
        loss = (weight * (ratio[kept] + torch_tta.symmetric(view, logits[kept]))).sum() / BATCH
        self.rule.zero_grad()
        loss.backward()
        self.rule.step()
        self.ensemble()
        prior = p.mean(0)
        smooth = max(1 / len(x), 1 / K) / prior.max()
        return logits.detach() * (prior + smooth) / (1 + smooth * K)

    @torch.no_grad()
    def ensemble(self):
        if not self.filtering:
            for p, first in zip(self.params, self.first, strict=True):
                p.mul_(0.99).add_(0.01 * first)
            return
        q = 0.005 * sum(p.numel() for p in self.params) / 38400
        self.variance = 0.99**2 * self.variance + q
        beta = max((1 - q) / (self.variance + 1 - q), 0.89)
        beta = beta if beta < 0.9999 else 1.0
        self.variance *= beta
        for p, first, hidden in zip(self.params, self.first, self.hidden, strict=True):
            hidden.mul_(0.99).add_(0.01 * first)
            hidden.mul_(beta).add_((1 - beta) * p)
            p.mul_(0.99).add_(0.01 * hidden)


class Rpl:
    """Generalised cross-entropy with labels of its own."""

    def __init__(self, net):
        self.net, self.params = torch_tta.by_batch(net), norms_of(net)
        self.rule = torch.optim.Adam(self.params, 1e-3)

    def __call__(self, x):
        logits = self.net(x)
        likeliest = logits.softmax(1).amax(1)
        self.rule.zero_grad()
        ((1 - likeliest**0.8) / 0.8).mean().backward()
        self.rule.step()
        return logits.detach()


class Lame:
    """Answers of the source network, made alike."""

    def __init__(self, net):
        self.net = net.eval()

    @torch.no_grad()
    def __call__(self, x):
        logits, out = torch_tta.features(self.net, x)
        out = functional.normalize(out, dim=1)
        gaps = torch.cdist(out, out, compute_mode="donot_use_mm_for_euclid_dist")
        width = gaps.sort(1).values[:, 4].mean()
        similar, unary = (
            torch.exp(-(gaps**2) / (2 * width**2)),
            -torch.log(logits.softmax(1) + 1e-10),
        )
        y = (-unary).softmax(1)
        for _ in range(100):
            y = (similar @ y - unary).softmax(1)
        return y


CASES = {
    "eta": (14, {}, lambda net: Eata(net, 0.0)),
    "eata": (14, {"fisher_alpha": 2000.0}, lambda net: Eata(net, 2000.0)),
    "sar": (14, {}, Sar),
    "deyo": (14, WINDOW, Deyo),
    "rpl": (6, {}, Rpl),
    "roid": (6, {"augment": flip}, lambda net: Roid(net, filtering=False)),
    "cmf": (6, {"augment": flip}, lambda net: Roid(net, filtering=True)),
    "lame": (2, {}, Lame),
}


@pytest.mark.parametrize("name", CASES)
def test_methods_are_those_of_pytorch_after_five_batches(name):
    sureness, settings, peer = CASES[name]
    params, stats = network(sureness)
    net = torch_tta.network(params, stats, 10, 1)
    theirs = peer(net)
    method = tta.METHODS[name](**settings)
    ours = tta.run(
        method, MODEL, params, stats, X, batch_size=BATCH, key=jax.random.key(0), source=SOURCE
    )
    batches = [torch_tta.images(X[i : i + BATCH]) for i in range(0, len(X), BATCH)]
    wanted = np.concatenate([theirs(batch).numpy() for batch in batches])
    np.testing.assert_allclose(ours.logits, wanted, atol=1e-4)
    mine = torch_networks.in_torch_layout(ours.params, stats)
    first = torch_networks.in_torch_layout(params, stats)
    moved = 0.0
    for leaf, value in net.named_parameters():
        np.testing.assert_allclose(mine[leaf], value.detach().numpy(), atol=2e-5, err_msg=leaf)
        moved = max(moved, np.abs(mine[leaf] - first[leaf]).max())
    assert moved > 1e-3 or name == "lame"
