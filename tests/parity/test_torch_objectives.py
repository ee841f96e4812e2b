"""Unlearning losses against PyTorch, written as the papers' codes write them.

Values and gradients with respect to logits or hidden states, so that shifts, masks and sums over
tokens are compared too: labels are -100 where there is nothing to learn, position t of the logits
predicts label t + 1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core import losses
from jaxunlearn.unlearn import objectives as obj

torch = pytest.importorskip("torch", reason="needs the parity extra")
F = torch.nn.functional

B, T, V = 4, 9, 120
PROMPT, END = (3, 1, 6, 2), (9, 5, 8, 9)  # of each sequence: response and padding begin
BETA, GAMMA = 0.3, 0.15
NAMES = ("forget", "retain", "forget_ref", "retain_ref")


@dataclasses.dataclass(frozen=True)
class Ours:
    """A model's logits on one batch, as the library's losses see them."""

    logits: jax.Array
    labels: jax.Array

    @property
    def shifted(self):
        return self.logits[:, :-1]

    @property
    def valid(self):
        return self.labels[:, 1:] != -100

    @property
    def token_nll(self):
        return losses.cross_entropy(self.shifted, jnp.maximum(self.labels[:, 1:], 0))

    @property
    def nll(self):
        return jnp.where(self.valid, self.token_nll, 0).sum(1)

    @property
    def lengths(self):
        return self.valid.sum(1)


@dataclasses.dataclass(frozen=True)
class Theirs:
    """The same as the papers' codes compute it."""

    logits: "torch.Tensor"
    labels: "torch.Tensor"

    @property
    def loss(self):  # of a Hugging Face model: the token-mean over the batch
        return F.cross_entropy(self.logits[:, :-1].reshape(-1, V), self.labels[:, 1:].reshape(-1))

    @property
    def token_nll(self):
        shifted = self.logits[..., :-1, :].reshape(-1, V)
        return F.cross_entropy(shifted, self.labels[..., 1:].reshape(-1), reduction="none")

    @property
    def batch_nll(self):
        logits, labels = self.logits[..., :-1, :], self.labels[..., 1:]
        loss = torch.nn.CrossEntropyLoss(ignore_index=-100, reduction="none")
        return loss(logits.transpose(-1, -2), labels).sum(dim=-1)

    @property
    def mask(self):
        return self.labels != -100


def their_kl(model, reference):
    current = F.log_softmax(model.logits, dim=-1).view(-1, V)
    target = F.log_softmax(reference.logits, dim=-1).view(-1, V)
    return F.kl_div(current, target, reduction="batchmean", log_target=True)


def their_masked_kl(model, reference):
    current = F.log_softmax(model.logits[model.mask], dim=-1)
    target = F.log_softmax(reference.logits[model.mask], dim=-1)
    return F.kl_div(current, target, reduction="batchmean", log_target=True)


def their_preference(x, beta=BETA):
    return -F.logsigmoid(x).mean() * 2 / beta


def their_dpo(win, win_ref, lose, lose_ref):
    win_log_ratio = -(win.batch_nll - win_ref.batch_nll)
    lose_log_ratio = -(lose.batch_nll - lose_ref.batch_nll)
    return -2 / BETA * F.logsigmoid(BETA * (win_log_ratio - lose_log_ratio)).mean()


def their_kto(squash, idk, idk_ref, forget, forget_ref):
    with torch.no_grad():
        kl = (-idk.batch_nll + idk_ref.batch_nll).mean()
    log_ratios = -forget.batch_nll + forget_ref.batch_nll
    return 1.0 - squash(kl - BETA * log_ratios).mean() * 2 / BETA


def their_wga(model, beta):
    nll = model.token_nll
    weight = ((-nll).exp().detach()) ** beta
    return -(weight * nll)[model.labels[..., 1:].reshape(-1) != -100].mean()


def their_satimp(model, beta1, beta2):
    nll = model.token_nll
    p = (-nll).exp().detach()
    weight = p**beta1 * (1 - p) ** beta2
    return -(weight * nll)[model.labels[..., 1:].reshape(-1) != -100].mean()


def their_undial(model, teacher, beta, only_valid):
    labels, logits = model.labels[..., 1:], model.logits[..., :-1, :]
    teacher_logits = teacher.logits[..., :-1, :].detach()
    mask = torch.zeros_like(teacher_logits)
    rows = torch.arange(mask.shape[0]).view(-1, 1, 1)
    columns = torch.arange(mask.shape[1]).view(1, -1, 1)
    mask[rows, columns, labels.unsqueeze(-1)] = 1.0  # -100 counts from the end
    soft = F.softmax(teacher_logits - mask * beta, dim=-1)
    loss = F.cross_entropy(logits.reshape(-1, V), soft.reshape(-1, V), reduction="none")
    return (loss[labels.reshape(-1) != -100] if only_valid else loss).mean()


def their_ce_u(model):
    valid = model.labels != -100
    first = (valid.cumsum(dim=-1) <= 1) & valid
    labels = model.labels.masked_fill(first, -100)[..., 1:]
    valid_logits = model.logits[..., :-1, :][labels != -100]
    target = valid_logits.detach().clone()
    target.scatter_(dim=-1, index=labels[labels != -100].unsqueeze(-1), value=float("-inf"))
    return F.cross_entropy(input=valid_logits, target=F.softmax(target, dim=-1))


def their_pdu(model):
    logits = model.logits.reshape(-1, V)
    return ((logits.max(dim=-1)[0] - logits.mean(dim=-1)) ** 2).mean()


def their_rmu(hidden, target, mask):
    """Of each sequence, as meant: a loop, so that no broadcast can go wrong."""
    return torch.stack(
        [
            F.mse_loss(own[counted], other[counted])
            for own, other, counted in zip(hidden, target.expand_as(hidden), mask, strict=True)
        ]
    ).mean()


def our_idk(f, r):
    return obj.idk(f.nll, f.lengths, r.nll, r.lengths)


def their_idk(f, r):  # one forward pass on the concatenation
    return Theirs(torch.cat([f.logits, r.logits]), torch.cat([f.labels, r.labels])).loss


def our_kto(loss, f, r, f0, r0):
    return loss(f.nll, f0.nll, obj.kto_baseline(r.nll, r0.nll), beta=BETA)


# name: (ours, theirs), of the batches to forget and to retain and of the reference on both.
CASES = {
    "descent": (
        lambda f, r, f0, r0: obj.descent(r.nll, r.lengths),
        lambda f, r, f0, r0: r.loss,
    ),
    "ascent": (
        lambda f, r, f0, r0: obj.ascent(f.nll, f.lengths),
        lambda f, r, f0, r0: f.loss * -1,
    ),
    "grad_diff": (
        lambda f, r, f0, r0: obj.grad_diff(
            f.nll, f.lengths, r.nll, r.lengths, gamma=0.7, alpha=1.3
        ),
        lambda f, r, f0, r0: 0.7 * -f.loss + 1.3 * r.loss,
    ),
    "idk": (lambda f, r, f0, r0: our_idk(f, r), lambda f, r, f0, r0: their_idk(f, r)),
    "npo": (
        lambda f, r, f0, r0: obj.npo(f.nll, f0.nll, beta=BETA),
        lambda f, r, f0, r0: their_preference(BETA * (f.batch_nll - f0.batch_nll)),
    ),
    "simnpo": (
        lambda f, r, f0, r0: obj.simnpo(f.nll, f.lengths, beta=BETA, gamma=GAMMA),
        lambda f, r, f0, r0: their_preference(BETA * (f.batch_nll / f.mask.sum(-1) - GAMMA)),
    ),
    "simnpo gamma outside": (
        lambda f, r, f0, r0: obj.simnpo(
            f.nll, f.lengths, beta=BETA, gamma=GAMMA, gamma_inside=False
        ),
        lambda f, r, f0, r0: their_preference(BETA * f.batch_nll / f.mask.sum(-1) - GAMMA),
    ),
    "simnpo sum": (
        lambda f, r, f0, r0: obj.simnpo(f.nll, f.lengths, beta=BETA, length_normalized=False),
        lambda f, r, f0, r0: their_preference(BETA * f.batch_nll),
    ),
    "npo batch": (
        lambda f, r, f0, r0: obj.npo_batch(f.nll, f0.nll, f.lengths, beta=BETA),
        lambda f, r, f0, r0: their_preference(BETA * (f.loss - f0.loss)),
    ),
    "simnpo batch": (
        lambda f, r, f0, r0: obj.simnpo_batch(f.nll, f.lengths, beta=BETA),
        lambda f, r, f0, r0: their_preference(BETA * f.loss),
    ),
    "dpo": (
        lambda f, r, f0, r0: obj.dpo(r.nll, r0.nll, f.nll, f0.nll, beta=BETA),
        lambda f, r, f0, r0: their_dpo(r, r0, f, f0),
    ),
    "kto_sigmoid": (
        functools.partial(our_kto, obj.kto_sigmoid),
        lambda f, r, f0, r0: their_kto(F.sigmoid, r, r0, f, f0),
    ),
    "kto_logsigmoid": (
        functools.partial(our_kto, obj.kto_logsigmoid),
        lambda f, r, f0, r0: their_kto(F.logsigmoid, r, r0, f, f0),
    ),
    "kl_retain": (
        lambda f, r, f0, r0: obj.kl_retain(r.logits, r0.logits),
        lambda f, r, f0, r0: their_kl(r, r0),
    ),
    "kl_retain masked": (
        lambda f, r, f0, r0: obj.kl_retain(r.logits, r0.logits, r.labels != -100),
        lambda f, r, f0, r0: their_masked_kl(r, r0),
    ),
    "ascent and kl_retain": (
        lambda f, r, f0, r0: obj.ascent(f.nll, f.lengths) + obj.kl_retain(r.logits, r0.logits),
        lambda f, r, f0, r0: f.loss * -1 + their_kl(r, r0),
    ),
    "wga": (
        lambda f, r, f0, r0: obj.wga(f.token_nll, f.valid, beta=0.2),
        lambda f, r, f0, r0: their_wga(f, 0.2),
    ),
    "satimp": (
        lambda f, r, f0, r0: obj.satimp(f.token_nll, f.valid, beta1=0.3, beta2=1.5),
        lambda f, r, f0, r0: their_satimp(f, 0.3, 1.5),
    ),
    "undial": (
        lambda f, r, f0, r0: obj.undial(f.shifted, f0.shifted, f.labels[:, 1:], f.valid, beta=10.0),
        lambda f, r, f0, r0: their_undial(f, f0, 10.0, only_valid=True),
    ),
    "undial of all positions": (
        lambda f, r, f0, r0: obj.undial(f.shifted, f0.shifted, f.labels[:, 1:] % V, beta=10.0),
        lambda f, r, f0, r0: their_undial(f, f0, 10.0, only_valid=False),
    ),
    "ce_u": (
        lambda f, r, f0, r0: obj.ce_u(f.shifted, f.labels[:, 1:], f.valid),
        lambda f, r, f0, r0: their_ce_u(f),
    ),
    "pdu_forget": (
        lambda f, r, f0, r0: obj.pdu_forget(f.logits),
        lambda f, r, f0, r0: their_pdu(f),
    ),
    # Here the logits stand for hidden states.
    "rmu": (
        lambda f, r, f0, r0: obj.rmu(f.logits, f0.logits[0, 0]),
        lambda f, r, f0, r0: F.mse_loss(f.logits, f0.logits[0, 0].expand_as(f.logits)),
    ),
    "rmu masked": (
        lambda f, r, f0, r0: obj.rmu(f.logits, f0.logits[0, 0], f.labels != -100),
        lambda f, r, f0, r0: their_rmu(f.logits, f0.logits[0, 0], f.mask),
    ),
    "rmu_retain": (
        lambda f, r, f0, r0: obj.rmu_retain(r.logits, r0.logits),
        lambda f, r, f0, r0: F.mse_loss(r.logits, r0.logits),
    ),
    "rmu_retain masked": (
        lambda f, r, f0, r0: obj.rmu_retain(r.logits, r0.logits, r.labels != -100),
        lambda f, r, f0, r0: their_rmu(r.logits, r0.logits, r.mask),
    ),
    "muse_legacy_npo": (
        lambda f, r, f0, r0: obj.muse_legacy_npo(f.logits, f0.logits, beta=BETA),
        lambda f, r, f0, r0: their_preference(BETA * (f0.logits - f.logits)),
    ),
    "muse_legacy_simnpo": (
        lambda f, r, f0, r0: obj.muse_legacy_simnpo(f.logits, beta=BETA, gamma=GAMMA),
        lambda f, r, f0, r0: their_preference(BETA * (-f.logits - GAMMA)),
    ),
}

# The gradient is a small difference of two probabilities, each over the number of tokens.
SUBTRACTED = {"ce_u": 1e-2}


def arrays(dtype):
    """Logits [B, T, V] by name, and labels of the batches to forget and to retain."""
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=(B, T, V)).astype(dtype) * 2 for name in NAMES}
    labels = rng.integers(0, V, (2, B, T))
    for row, (start, stop) in enumerate(zip(PROMPT, END, strict=True)):
        labels[:, row, :start] = labels[:, row, stop:] = -100
    return logits, labels


@functools.cache
def ours(dtype):
    """{name: (value, gradients of both batches' logits)}, in one compiled program."""
    logits, labels = arrays(dtype)

    def everything(logits):
        forget, retain = (jnp.asarray(own) for own in labels)
        found = {}
        for name, (loss, _) in CASES.items():

            def of_trained(trained, loss=loss):
                own = logits | trained
                batches = (own["forget"], own["retain"], own["forget_ref"], own["retain_ref"])
                return loss(*map(Ours, batches, (forget, retain, forget, retain)))

            trained = {key: logits[key] for key in ("forget", "retain")}
            found[name] = jax.value_and_grad(of_trained)(trained)
        return found

    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(everything)({key: jnp.asarray(value) for key, value in logits.items()})
        assert found["npo"][0].dtype == dtype
        return jax.device_get(found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name, dtype):
    logits, labels = arrays(dtype)
    tensors = {
        key: torch.tensor(value, requires_grad="ref" not in key) for key, value in logits.items()
    }
    forget, retain = (torch.tensor(own) for own in labels)
    theirs = CASES[name][1](
        Theirs(tensors["forget"], forget),
        Theirs(tensors["retain"], retain),
        Theirs(tensors["forget_ref"], forget),
        Theirs(tensors["retain_ref"], retain),
    )
    theirs.backward()
    value, grads = ours(dtype)[name]
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(value, theirs.item(), rtol=tolerance)
    used = 0
    for key, grad in grads.items():
        wanted = tensors[key].grad
        wanted = np.zeros_like(grad) if wanted is None else wanted.numpy()
        size = np.abs(wanted).max()
        scale = max(size, SUBTRACTED.get(name, 0))
        np.testing.assert_allclose(grad, wanted, rtol=0, atol=tolerance * scale)
        used += size > 0
    assert used


def test_masked_rmu_is_open_unlearning_where_lengths_are_equal():
    rng = np.random.default_rng(1)
    hidden, frozen = rng.normal(size=(2, 3, 5, 6)).astype(np.float32)
    for lengths in ([2, 2, 2], [1, 2, 5]):
        mask = np.arange(5) < np.array(lengths)[:, None]
        squared = F.mse_loss(torch.tensor(hidden), torch.tensor(frozen), reduction="none")
        kept = torch.tensor(mask).unsqueeze(-1).expand_as(squared)
        sums = (squared * kept).mean(dim=2).sum(dim=1)
        # [B] by [B, 1] gives [B, B]: every sum by every count.
        theirs = (sums / torch.tensor(mask).sum(dim=-1, keepdim=True)).mean().item()
        own = obj.rmu_retain(hidden, frozen, mask)
        assert np.isclose(own, theirs, rtol=1e-6) == (len(set(lengths)) == 1)


def test_dual_updates_and_task_vectors():
    rng = np.random.default_rng(2)
    for lam, loss, eps, step in rng.uniform(0, 2, (20, 4)):
        wanted = max(0, lam + step * (loss - eps))
        np.testing.assert_allclose(obj.pdu_dual(lam, loss, eps, step), wanted, rtol=1e-5, atol=1e-6)
    tuned, start, params = rng.normal(size=(3, 4, 5)).astype(np.float32)
    theirs = torch.tensor(params) - 5.0 * (torch.tensor(tuned) - torch.tensor(start))
    got = obj.task_vector({"w": tuned}, {"w": start}, {"w": params}, 5.0)
    np.testing.assert_allclose(got["w"], theirs.numpy(), rtol=1e-6, atol=1e-6)
