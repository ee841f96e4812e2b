"""PyTorch's side of the language benchmarks: training, LoRA, a sweep and an evaluation suite.

The networks are those of transformers; losses and metrics are written as in open-unlearning, NPO's,
SimNPO's and RMU's code. No attention mask is passed: texts are padded on the right, where a causal
model needs none, and attention is faster so. Labels are -100 on prompts and padding.
"""

import contextlib
import copy
import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

from jaxunlearn.nn.language import weights

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

IGNORED = -100
Batch = dict[str, Any]  # of tensors, such as tokens and labels int64 [B, T]
Loss = Callable[[nn.Module, Batch], torch.Tensor]


def network(config, params) -> Any:
    """Our network in transformers, through a folder in the Hub's format."""
    with tempfile.TemporaryDirectory() as folder:
        weights.save(folder, config, params)
        return copy.deepcopy(load(folder))


def load(folder: str, **where: str) -> Any:
    """From a folder, or of it `gguf_file`; float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", **where
    )


def load_gguf(file: str) -> Any:
    """From a GGUF file."""
    folder, name = os.path.split(file)
    with contextlib.redirect_stderr(io.StringIO()):  # a bar of progress
        return load(folder, gguf_file=name)


# Training


def logits_of(net: Any, tokens: torch.Tensor) -> torch.Tensor:
    """At all positions, [B, T, V]."""
    return net(tokens, use_cache=False).logits


def sequence_nll(net: Any, batch: Batch) -> torch.Tensor:
    """Summed over the response, [B]; labels are shifted, which saves a copy of the logits."""
    logits = logits_of(net, batch["tokens"])
    labels = functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
    nll = functional.cross_entropy(
        logits.view(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="none",
    )
    return nll.view(labels.shape).sum(-1)


def _lengths(batch: Batch) -> torch.Tensor:
    return (batch["labels"] != IGNORED).sum(-1)


def descent(net: Any, batch: Batch) -> torch.Tensor:
    """The loss of transformers: token-mean over the batch."""
    return net(batch["tokens"], labels=batch["labels"], use_cache=False).loss


def ascent(net: Any, batch: Batch) -> torch.Tensor:
    """GA."""
    return -descent(net, batch)


def npo(net: Any, batch: Batch, *, beta: float, reference: Any = None) -> torch.Tensor:
    """NPO; with a network as reference its NLL is computed anew, else it is in the batch."""
    nll = sequence_nll(net, batch)
    if reference is None:
        reference_nll = batch["ref_nll"]
    else:
        with torch.no_grad():
            reference_nll = sequence_nll(reference, batch)
    return -2 / beta * functional.logsigmoid(beta * (nll - reference_nll)).mean()


def simnpo(net: Any, batch: Batch, *, beta: float) -> torch.Tensor:
    """SimNPO with margin 0."""
    score = sequence_nll(net, batch) / _lengths(batch)
    return -2 / beta * functional.logsigmoid(beta * score).mean()


def _response(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Logits that predict the response, [tokens, V]."""
    return logits[:, :-1][batch["labels"][:, 1:] != IGNORED]


def reference_logits(net: Any, batch: Batch) -> torch.Tensor:
    """Of the response, [tokens, V], as `grad_diff_kl` caches them."""
    with torch.no_grad():
        return _response(logits_of(net, batch["tokens"]), batch)


def grad_diff_kl(net: Any, batch: Batch, *, reference: Any = None) -> torch.Tensor:
    """GA on forget, KL(reference || network) at the responses of retain."""
    forget, retain = batch["forget"], batch["retain"]
    log_probs = functional.log_softmax(_response(logits_of(net, retain["tokens"]), retain), -1)
    logits = batch["logits"] if reference is None else reference_logits(reference, retain)
    kl = functional.kl_div(
        log_probs, functional.log_softmax(logits, -1), reduction="batchmean", log_target=True
    )
    return ascent(net, forget) + kl


def hidden_state(net: Any, tokens: torch.Tensor, layer: int) -> torch.Tensor:
    """After so many layers, by a hook on a whole forward pass, as open-unlearning takes it."""
    kept = []
    hook = net.model.layers[layer - 1].register_forward_hook(
        lambda module, inputs, output: kept.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    net(tokens, use_cache=False)
    hook.remove()
    return kept[0]


def rmu(net: Any, batch: Batch, *, layer: int, reference: Any = None) -> torch.Tensor:
    """RMU: forget states to the control vector, retain states stay; means over all positions."""
    forget, retain = batch["forget"], batch["retain"]
    if reference is None:
        before = retain["hidden"]
    else:
        with torch.no_grad():
            before = hidden_state(reference, retain["tokens"], layer)
    pushed = hidden_state(net, forget["tokens"], layer)
    control = forget["control"][0].expand_as(pushed)
    kept = hidden_state(net, retain["tokens"], layer)
    return functional.mse_loss(pushed, control) + functional.mse_loss(kept, before)


def rows(data: Any, step: int, size: int) -> Any:
    """The batch of a step: rows in order, again and again; lists hold whole batches."""
    if isinstance(data, dict):
        return {name: rows(part, step, size) for name, part in data.items()}
    if isinstance(data, list):
        return data[step % len(data)]
    first = step * size % len(data)
    return data[first : first + size]


def train(net: Any, loss: Loss, data: Any, n_steps: int, size: int, lr: float) -> list[float]:
    """AdamW without weight decay on what needs gradients; the losses before each step."""
    net.train()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=True)
    seen = []
    for step in range(n_steps):
        optimizer.zero_grad(set_to_none=True)
        value = loss(net, rows(data, step, size))
        value.backward()
        optimizer.step()
        seen.append(value.detach())
    return [float(value) for value in seen]


# LoRA

_PLACES = {
    name: f"self_attn.{name}_proj" if name in "qkvo" else f"mlp.{name}_proj"
    for name in ("q", "v", "o", "gate", "up", "down")
}


class LowRank(nn.Module):
    """A frozen linear layer plus `scale b a`."""

    def __init__(self, base: nn.Linear, a: torch.Tensor, b: torch.Tensor, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * functional.linear(functional.linear(x, self.a), self.b)

    def merged(self) -> nn.Linear:
        with torch.no_grad():
            self.base.weight += self.scale * (self.b @ self.a)
        return self.base


def attach(net: Any, adapter: dict[str, np.ndarray], scale: float) -> Any:
    """Freezes a network and adapts it, from matrices by our names, stacked over layers."""
    net.requires_grad_(False)
    for number, layer in enumerate(net.model.layers):
        for name, place in _PLACES.items():
            a, b = (adapter[f"layers/{name}/kernel/lora_{side}"][number] for side in "ab")
            module = LowRank(
                layer.get_submodule(place),
                torch.tensor(a.T.copy()),
                torch.tensor(b.T.copy()),
                scale,
            )
            _put(layer, place, module)
    return net


def merge(net: Any) -> Any:
    """Adds the adapters to the layers below them."""
    for layer in net.model.layers:
        for place in _PLACES.values():
            _put(layer, place, layer.get_submodule(place).merged())
    return net


def _put(layer: Any, place: str, module: nn.Module) -> None:
    parent, _, last = place.rpartition(".")
    setattr(layer.get_submodule(parent), last, module)


LOCAL: dict[str, Loss] = {
    "ga": ascent,
    "npo": functools.partial(npo, beta=0.5),
    "simnpo_length": functools.partial(simnpo, beta=1.0),
}


def sweep(
    base: Any, sets: dict[str, Batch], orders, forget: str, fresh, scale: float, steps, size, lr
) -> np.ndarray:
    """Every order is trained on its own, merged, and forgets with every loss and a new adapter.

    Args:
        base: the network before all stages.
        sets: data by stage.
        orders: tuples of names of stages.
        forget: the stage that is unlearned.
        fresh: adapters that the stages, and the unlearning, begin with.
        scale: the adapters' scale.
        steps: number of steps of a stage, and of unlearning.
        size: batch size.
        lr: AdamW's learning rate.

    Returns:
        The losses of unlearning, [orders times losses, steps].
    """
    curves = []
    for order in orders:
        trained = attach(copy.deepcopy(base), fresh[0], scale)
        for name in order:
            train(trained, descent, sets[name], steps[0], size, lr)
        merge(trained)
        for name, loss in LOCAL.items():
            data = dict(sets[forget])
            if name == "npo":
                with torch.no_grad():
                    parts = [
                        sequence_nll(trained, rows(data, step, size))
                        for step in range(len(data["tokens"]) // size)
                    ]
                data["ref_nll"] = torch.cat(parts)
            net = attach(copy.deepcopy(trained), fresh[1], scale)
            curves.append(train(net, loss, data, steps[1], size, lr))
    return np.array(curves)


# Evaluation, a forward pass for every metric


def _batches(data: Batch, size: int) -> Iterator[Batch]:
    """Cut to the longest text of each batch, as a collator pads them."""
    for first in range(0, len(data["tokens"]), size):
        width = int(data["widths"][first : first + size].max())
        yield {name: data[name][first : first + size, :width] for name in ("tokens", "labels")}


def mean_nll(net: Any, batch: Batch) -> list[float]:
    """Per token of the response: what probability, truth ratio and the attack by loss read."""
    return (sequence_nll(net, batch) / _lengths(batch)).tolist()


def _of_rows(net: Any, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities that predict a response, and its tokens, both without the last one."""
    logp = functional.log_softmax(logits_of(net, batch["tokens"]), -1)[:, :-1]
    labels = batch["labels"][:, 1:]
    for row, answer in zip(logp, labels, strict=True):
        where = (answer != IGNORED).nonzero(as_tuple=True)[0][:-1]
        yield row[where], answer[where]


def exact_memorization(net: Any, batch: Batch) -> list[float]:
    """Fraction of tokens that are the likeliest."""
    return [
        float((logp.argmax(-1) == answer).float().mean()) for logp, answer in _of_rows(net, batch)
    ]


def extraction_strength(net: Any, batch: Batch) -> list[float]:
    """1 - k / n, from the first k on all are the likeliest."""
    strengths = []
    for logp, answer in _of_rows(net, batch):
        likeliest, k = logp.argmax(-1), 0
        for k in range(len(answer)):  # noqa: B007
            if torch.equal(likeliest[k:], answer[k:]):
                break
        strengths.append(1 - k / len(answer))
    return strengths


def min_k(net: Any, batch: Batch, k: float = 0.4) -> list[float]:
    """Min-K% Prob."""
    scores = []
    for logp, answer in _of_rows(net, batch):
        values = logp.gather(-1, answer[:, None])[:, 0].numpy()
        scores.append(-float(np.mean(np.sort(values)[: max(1, int(len(values) * k))])))
    return scores


def min_k_plus_plus(net: Any, batch: Batch, k: float = 0.4) -> list[float]:
    """Min-K%++."""
    scores = []
    for logp, answer in _of_rows(net, batch):
        p = logp.exp()
        mean = (p * logp).sum(-1)
        variance = (p * logp.square()).sum(-1) - mean.square()
        values = logp.gather(-1, answer[:, None])[:, 0]
        values = ((values - mean) / variance.clamp(min=1e-6).sqrt()).numpy()
        scores.append(-float(np.mean(np.sort(values)[: max(1, int(len(values) * k))])))
    return scores


def evaluate(net: Any, responses: list[Batch], size: int) -> dict[str, np.ndarray]:
    """Seven metrics of the first response; the second is its paraphrase, the others are false."""
    net.eval()

    def over(metric: Callable[[Any, Batch], list[float]], data: Batch) -> np.ndarray:
        return np.concatenate([metric(net, batch) for batch in _batches(data, size)])

    with torch.inference_mode():
        answer, paraphrase, *perturbed = responses
        right = over(mean_nll, paraphrase)
        wrong = np.mean([over(mean_nll, one) for one in perturbed], axis=0)
        return {
            "probability": np.exp(-over(mean_nll, answer)),
            "truth_ratio": np.exp(right - wrong),
            "exact_memorization": over(exact_memorization, answer),
            "extraction_strength": over(extraction_strength, answer),
            "min_k": over(min_k, answer),
            "min_k_plus_plus": over(min_k_plus_plus, answer),
            "loss": over(mean_nll, answer),
        }


# Generation


def generate(net: Any, tokens: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """The likeliest tokens, with the cache; none ends the text."""
    net.eval()
    with torch.inference_mode():
        out = net.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=n_tokens,
            min_new_tokens=n_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[:, tokens.shape[1] :]


@contextlib.contextmanager
def threads(n: int):
    """Runs a block with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
