"""SmolLM2-135M: loading, reading, writing, and a training step; its file is SMOLLM2_GGUF."""

import dataclasses
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.harness import Row, agree, best_of, measure, with_peak
from benchmarks.language import (
    ALPHA,
    HEAD,
    LENGTH,
    LR,
    RANK,
    compiled,
    in_order,
    random_texts,
    thread_counts,
    trials,
    with_threads,
)
from benchmarks.peers import torch_language
from jaxunlearn.core import adapters, loop, mesh, tree
from jaxunlearn.core.step import gradient_step, init_state
from jaxunlearn.nn.language import decoder
from jaxunlearn.nn.language.generation import generate
from jaxunlearn.paths.settings import LORA_TARGETS
from jaxunlearn.unlearn import language_objectives

PROMPT, NEW = 256, 64  # tokens that SmolLM2 reads, and that it adds
GGUF = os.environ.get("SMOLLM2_GGUF")


def side(name: str) -> Callable[[], Any]:
    """Loading SmolLM2, "ours" or "peer"."""
    file = GGUF or ""
    if name == "peer":
        return functools.partial(torch_language.load_gguf, file)
    return lambda: jax.block_until_ready(decoder.from_pretrained(file).params)


def rows() -> Iterator[Row]:
    """Loading, reading, writing and a training step of a real network."""
    if not GGUF or not Path(GGUF).is_file():
        print("SMOLLM2_GGUF names no file: the rows of SmolLM2 are left out", file=sys.stderr)
        return
    loaded = decoder.from_pretrained(GGUF)
    config, params = dataclasses.replace(loaded.config, eos=()), loaded.params
    rng = np.random.default_rng(6)
    tokens = rng.integers(0, config.vocabulary, (8, PROMPT)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    if importlib.util.find_spec("accelerate"):
        yield _loading(config, params, tokens[:1, :32])
    else:
        print("transformers reads GGUF with accelerate only: no row of loading", file=sys.stderr)
    net = torch_language.network(config, params).eval()

    def writing(batch: int, length: int, n_tokens: int) -> tuple[Callable, dict[str, Callable]]:
        prompt = jnp.asarray(tokens[:batch, :length]), jnp.asarray(mask[:batch, :length])
        theirs = torch.tensor(tokens[:batch, :length]).long()
        return (
            lambda: generate(config, params, *prompt, n_tokens).block_until_ready(),
            {
                f"{n} threads": functools.partial(
                    with_threads, n, torch_language.generate, net, theirs, n_tokens
                )
                for n in thread_counts()
            },
        )

    for batch, length, n_tokens, what in (
        (4, PROMPT, 1, f"reads 4 x {PROMPT} tokens"),
        (1, 16, NEW, f"writes {NEW} tokens, batch 1"),
        (8, 16, NEW, f"writes {NEW} tokens, batch 8"),
    ):
        mine, theirs = writing(batch, length, n_tokens)
        few, others = writing(batch, min(length, 32), min(8, n_tokens))
        written = np.asarray(few())
        gap = agree(what, written, others[f"{mesh.cores()} threads"]().numpy(), 0.0)
        n = batch * (length if n_tokens == 1 else n_tokens)
        ours, peer = compiled(measure(mine, repeats=2)), trials(others, theirs, repeats=2)
        speeds = ", ".join(f"{n / one.steady:.0f} tokens/s" for one in (ours, peer))
        yield Row(
            f"SmolLM2-135M {what}", ours, peer, "transformers", gap,
            note=f"{speeds} of ours and the peer; gap: of the first tokens",
        )  # fmt: skip
    yield _smollm2_step(config, params, net)


def _loading(config: decoder.Config, params: Any, tokens: np.ndarray) -> Row:
    model = decoder.decoder(config)
    mine = jax.jit(lambda params, tokens: model.apply(params, {}, tokens)[0])(params, tokens)
    with torch.inference_mode():
        theirs = torch_language.logits_of(side("peer")().eval(), torch.tensor(tokens).long())
    gap = agree("SmolLM2, logits", mine, theirs.numpy(), 2e-2)
    ours, peer = (
        with_peak(measure(side(name), repeats=2), "benchmarks.smollm2", name)
        for name in ("ours", "peer")
    )
    note = "each with its own reader; ours reads the tokenizer too; gap: of logits"
    name = "SmolLM2-135M: GGUF to float32 weights"
    return Row(name, ours, peer, "transformers", gap, note=note)


def _smollm2_step(config: decoder.Config, params: Any, net: Any, n_steps: int = 2) -> Row:
    data = random_texts(8, 7, config.vocabulary)
    model = decoder.decoder(config)
    adapted = adapters.attach(params, LORA_TARGETS, RANK, ALPHA, jax.random.key(8))
    adapter, frozen = adapters.split(adapted)
    optimizer = optax.adamw(LR, weight_decay=0.0)
    take = gradient_step(
        language_objectives.on_base(language_objectives.fine_tuning(model)), optimizer
    )

    @jax.jit
    def train(adapter, frozen, arrays):
        state, source = init_state(adapter, optimizer), in_order(arrays, 8)
        return loop.scan(take, state, frozen, source, jax.random.key(0), n_steps)[1]["loss"]

    arrays = jax.tree.map(jnp.asarray, data.ours)
    start = {name: np.asarray(x) for name, x in tree.named(adapter).items()}
    torch_language.attach(net, start, ALPHA / RANK)
    theirs = {name: data.peer[name] for name in ("tokens", "labels")}
    before = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}

    def peer() -> list[float]:
        net.load_state_dict(before, strict=False)
        return torch_language.train(net, torch_language.descent, theirs, n_steps, 8, LR)

    mine = lambda: train(adapter, frozen, arrays).block_until_ready()  # noqa: E731
    started = time.perf_counter()
    losses = mine()
    first = time.perf_counter() - started  # with its compilation
    gap = agree("SmolLM2, LoRA", losses, peer(), 1e-3)
    calls = {f"{n} threads": functools.partial(with_threads, n, peer) for n in thread_counts()}
    return Row(
        f"SmolLM2-135M: {n_steps} LoRA steps of rank {RANK}, batch 8 x {LENGTH}",
        compiled(dataclasses.replace(measure(mine, repeats=1), first=first)),
        best_of(calls, repeats=1),
        "PyTorch, transformers",
        gap,
        note=HEAD,
    )
