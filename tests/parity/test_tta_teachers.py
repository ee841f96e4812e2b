"""Methods of test-time adaptation with teachers and views, against PyTorch on a small network.

Both sides have one convolution, BatchNorm and a linear layer, the same weights, a deterministic
augmentation, and a source of one batch. The reference computes in float64.
"""

import copy
import math

import jax
import numpy as np
import pytest
from flax import nnx

from jaxunlearn import nn, tta
from jaxunlearn.core import tree
from jaxunlearn.core.keys import fold
from jaxunlearn.core.model import RUNNING, from_nnx
from jaxunlearn.tta import banks

torch = pytest.importorskip("torch", reason="needs the parity extra")
F = torch.nn.functional

K, D, B, KEY = 4, 6, 8, jax.random.key(1)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(5 * B, 6, 6, 3)).astype("float32")
SOURCE = RNG.uniform(size=(B, 6, 6, 3)).astype("float32"), np.arange(B) % K
HEADS = [RNG.normal(0, 0.4, s).astype("float32") for s in ((D, 7), (7,), (7, 5), (5,))]
SGD = {"optimizer": "sgd", "learning_rate": 0.05}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nn.Conv(3, D, use_bias=False, rngs=rngs)
        self.norm = nn.BatchNorm(D)
        self.head = nnx.Linear(D, K, rngs=rngs)

    def __call__(self, x, statistics=RUNNING, return_features=False):
        features = jax.nn.relu(self.norm(self.conv(x), statistics=statistics)).mean((1, 2))
        return (self.head(features), features) if return_features else self.head(features)


MODEL = from_nnx(Net)
PARAMS, STATS = jax.device_get(MODEL.init(jax.random.key(0)))
PARAMS["head"]["kernel"] = 4 * PARAMS["head"]["kernel"]
STATS["norm"]["var"] = RNG.uniform(0.5, 1.5, D).astype("float32")


class Torch(torch.nn.Module):
    """The same network; statistics "batch", "running", or "robust", a mixture that is kept."""

    def __init__(self):
        super().__init__()
        weights = tree.named(PARAMS)
        to = lambda name, *axes: torch.nn.Parameter(  # noqa: E731
            torch.tensor(weights[name].transpose(axes) if axes else weights[name]).double()
        )
        self.kernel = to("conv/kernel", 3, 2, 0, 1)
        self.w, self.b = to("head/kernel"), to("head/bias")
        self.scale, self.shift = to("norm/scale"), to("norm/bias")
        self.mean, self.var = (torch.tensor(STATS["norm"][n]).double() for n in ("mean", "var"))

    def forward(self, x, statistics="batch", update=False):
        y = F.conv2d(x, self.kernel, padding=1)
        var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
        if statistics == "running":
            mean, var = self.mean, self.var
        elif statistics == "robust":
            mean, var = 0.8 * self.mean + 0.2 * mean, 0.8 * self.var + 0.2 * var
            self.mean, self.var = mean.detach(), var.detach()
        elif update:
            n = y.numel() // D
            self.mean = (0.9 * self.mean + 0.1 * mean).detach()
            self.var = (0.9 * self.var + 0.1 * var * n / (n - 1)).detach()
        at = lambda v: v.view(-1, 1, 1)  # noqa: E731
        y = (y - at(mean)) / torch.sqrt(at(var) + 1e-5) * at(self.scale) + at(self.shift)
        features = F.relu(y).mean((2, 3))
        return features @ self.w + self.b, features

    def follow(self, other, share):
        """An average of parameters."""
        for mine, new in zip(self.parameters(), other.parameters(), strict=True):
            mine.data = share * mine.data + (1 - share) * new.data


def to_torch(images):
    return torch.tensor(np.array(images)).permute(0, 3, 1, 2).double()


def ce(teacher, student):
    return -(teacher.softmax(1) * student.log_softmax(1)).sum(1)


def sce(student, teacher):
    return 0.5 * ce(teacher, student) + 0.5 * ce(student, teacher)


def stepped(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def heads():
    return [torch.tensor(array).double().requires_grad_() for array in HEADS]


def prototypes(net):
    with torch.no_grad():
        _, features = net(to_torch(SOURCE[0]))
    return torch.stack([features[SOURCE[1] == k].mean(0) for k in range(K)])


def contrast(projector, near, features, augmented, temperature=0.1):
    """Row by row."""
    w1, b1, w2, b2 = projector
    nearest = near[torch.argmax(F.normalize(features.detach()) @ F.normalize(near).T, 1)]
    rows = F.normalize(F.relu(torch.cat([nearest, features, augmented]) @ w1 + b1) @ w2 + b2)
    similar, losses = rows @ rows.T / temperature, []
    for a in range(len(rows)):
        others = [i for i in range(len(rows)) if i != a]
        positives = [i for i in others if i % B == a % B]
        losses.append((torch.logsumexp(similar[a, others], 0) - similar[a, positives]).mean())
    return torch.stack(losses).mean()


def view(x):
    return x.flip(-1) * 0.9 + 0.05


def view_of(key, images):
    del key
    return images[:, :, ::-1] * 0.9 + 0.05


def sgd(params):
    return torch.optim.SGD(params, 0.05, momentum=0.9, nesterov=True)


def rmt(n_warm_up, lambda_src):
    net, projector = Torch(), heads()
    near, teacher = prototypes(net), copy.deepcopy(net)
    optimizer = sgd([*net.parameters(), *projector])
    x_source, y_source = to_torch(SOURCE[0]), torch.tensor(SOURCE[1])
    for i in range(n_warm_up):
        optimizer.param_groups[0]["lr"] = 0.05 * (i + 1) / n_warm_up
        stepped(optimizer, sce(net(x_source)[0], teacher(x_source)[0].detach()).mean())
        teacher.follow(net, 0.99)

    def step(x):
        logits, features = net(x)
        of_view, augmented = net(view(x))
        target = teacher(x)[0].detach()
        loss = (0.5 * sce(logits, target) + 0.5 * sce(of_view, target)).mean()
        loss = loss + contrast(projector, near, features, augmented)
        loss = loss + lambda_src * F.cross_entropy(net(x_source)[0], y_source)
        stepped(optimizer, loss)
        teacher.follow(net, 0.99)
        return logits + target

    return net, step


def santa():
    net, projector = Torch(), heads()
    near, anchor = prototypes(net), copy.deepcopy(net)
    optimizer = sgd([net.scale, net.shift, *projector])

    def step(x):
        logits, features = net(x)
        of_view, augmented = net(view(x))
        target = anchor(x)[0].detach()
        loss = (0.5 * ce(logits, target) + 0.5 * ce(of_view, target)).mean()
        stepped(optimizer, loss + contrast(projector, near, features, augmented))
        return logits

    return net, step


def cotta(threshold):
    net = Torch()
    teacher, source = copy.deepcopy(net), copy.deepcopy(net)
    optimizer = sgd(net.parameters())

    def step(x):
        with torch.no_grad():
            is_sure = source(x)[0].softmax(1).amax(1).mean() >= threshold
            target = teacher(x if is_sure else view(x))[0]
        stepped(optimizer, ce(target, net(x)[0]).mean())
        teacher.follow(net, 0.99)
        return target

    return net, step


def rotta(size, frequency):
    net = Torch()
    teacher, memory = copy.deepcopy(net), []  # of [image, label, uncertainty, age], oldest first
    optimizer, came = sgd([net.scale, net.shift]), 0

    def score(entry):
        return 0.5 / (1 + math.exp(-entry[3] / size)) + 2 * entry[2] / math.log(K)

    def add(new):
        counts = [sum(entry[1] == k for entry in memory) for k in range(K)]
        if counts[new[1]] >= size / K:
            rivals = [entry for entry in memory if entry[1] == new[1]]
        elif len(memory) < size:
            rivals = []
        else:
            rivals = [entry for entry in memory if counts[entry[1]] == max(counts)]
        worst = max(rivals, key=score, default=None)
        if worst is None or score(worst) > score(new):
            memory[:] = [entry for entry in memory if entry is not worst] + [new]
        for entry in memory:
            entry[3] += 1

    def update():
        x = torch.stack([entry[0] for entry in memory])
        weights = torch.tensor([1 / (1 + math.exp(entry[3] / size)) for entry in memory])
        with torch.no_grad():
            target, _ = teacher(x, "robust")
        logits, _ = net(view(x), "robust")
        stepped(optimizer, (ce(target, logits) * weights).mean())
        teacher.follow(net, 0.9)

    def step(x):
        nonlocal came
        with torch.no_grad():
            logits, _ = teacher(x, "running")
        p = logits.softmax(1)
        unsure = -(p * torch.log(p + 1e-6)).sum(1)
        for image, label, h in zip(x, p.argmax(1).tolist(), unsure.tolist(), strict=True):
            add([image, label, h, 0])
            came += 1
            if came % frequency == 0:
                update()
        return logits

    return net, step


def adacontrast(size):
    net = Torch()
    slow, seen = copy.deepcopy(net), 0
    queue = banks.random_queue(fold(fold(KEY, "start"), "queue"), size, D, K)
    queue_x, queue_y = (torch.tensor(np.array(part)) for part in queue[:2])
    queue_x, queue_y = queue_x.double(), queue_y.long()
    optimizer = torch.optim.SGD(
        net.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
    )

    def step(x):
        nonlocal seen
        weak, query, positive = (to_torch(v) for v in three(None, x.permute(0, 2, 3, 1).numpy()))
        rows = torch.arange(seen, seen + B) % size
        with torch.no_grad():
            labels = net(weak, update=True)[0].argmax(1)
            slow.follow(net, 0.9)
            keys = F.normalize(slow(positive, update=True)[1])
        logits, features = net(query, update=True)
        features = F.normalize(features)
        far = (
            features @ queue_x.clone().T
        )  # of the queue before, with the classes of the queue after
        queue_x[rows], queue_y[rows] = keys, labels
        far = far.masked_fill(labels[:, None] == queue_y.clone(), -math.inf)
        both = torch.cat([(features * keys).sum(1, keepdim=True), far], 1) / 0.07
        p = logits.softmax(1).mean(0)
        loss = F.cross_entropy(logits, labels) + F.cross_entropy(both, torch.zeros(B).long())
        stepped(optimizer, loss + (p * torch.log(p + 1e-8)).sum())
        seen += B
        with torch.no_grad():
            slow(weak, update=True)  # for the bank, which is not asked before 1,024 images
            return net(x, "running")[0]

    return net, step


def three(key, images):
    del key
    return images * 0.9 + 0.05, images[:, :, ::-1] * 0.8 + 0.1, images[:, ::-1] * 0.85


CONTRAST = {"projection": HEADS, "augment": view_of}
CASES = {
    "rmt": (
        lambda: rmt(3, 0.5),
        {"warm_up_samples": 3 * B, "lambda_src": 0.5, "ema": 0.99, **CONTRAST},
    ),
    "rmt, source-free": (
        lambda: rmt(0, 0),
        {"warm_up_samples": 0, "lambda_src": 0, "ema": 0.99, **CONTRAST},
    ),
    "santa": (santa, CONTRAST),
    "cotta": (
        lambda: cotta(1.0),
        {"threshold": 1.0, "restore": 0, "n_augmentations": 3, "ema": 0.99, "augment": view_of},
    ),
    "cotta, sure": (
        lambda: cotta(0.0),
        {"threshold": 0.0, "restore": 0, "ema": 0.99, "augment": view_of},
    ),
    "rotta": (
        lambda: rotta(10, 7),
        {
            "memory_size": 10,
            "update_frequency": 7,
            "nu": 0.1,
            "alpha": 0.2,
            "lambda_t": 0.5,
            "lambda_u": 2.0,
            "augment": view_of,
        },
    ),
    "adacontrast": (
        lambda: adacontrast(12),
        {"queue_size": 12, "ema": 0.9, "augment": three},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_parameters_after_five_batches(case):
    reference, settings = CASES[case]
    net, step = reference()
    theirs = [step(to_torch(IMAGES[i : i + B])).detach() for i in range(0, len(IMAGES), B)]
    method = tta.METHODS[case.partition(",")[0]](**SGD | settings)
    ours = tta.run(method, MODEL, PARAMS, STATS, IMAGES, batch_size=B, key=KEY, source=SOURCE)
    np.testing.assert_allclose(ours.logits, torch.cat(theirs), atol=2e-4)
    end = {
        "conv/kernel": net.kernel.permute(2, 3, 1, 0),
        "norm/scale": net.scale,
        "norm/bias": net.shift,
        "head/kernel": net.w,
        "head/bias": net.b,
    }
    for name, value in tree.named(ours.params).items():
        np.testing.assert_allclose(value, end[name].detach(), atol=2e-4, err_msg=name)
