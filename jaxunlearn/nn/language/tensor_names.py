"""What the leaves of a decoder are called in files of Hugging Face, of llama.cpp and of PEFT."""

_PARTS = {  # in every layer: ours, Hugging Face's, llama.cpp's
    "attention_norm": ("input_layernorm", "attn_norm"),
    "q": ("self_attn.q_proj", "attn_q"),
    "k": ("self_attn.k_proj", "attn_k"),
    "v": ("self_attn.v_proj", "attn_v"),
    "o": ("self_attn.o_proj", "attn_output"),
    "q_norm": ("self_attn.q_norm", "attn_q_norm"),
    "k_norm": ("self_attn.k_norm", "attn_k_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"),
    "down": ("mlp.down_proj", "ffn_down"),
}
_OUTSIDE = {
    "embed/table": ("model.embed_tokens", "token_embd"),
    "norm/scale": ("model.norm", "output_norm"),
    "head/kernel": ("lm_head", "output"),
}


def in_files(leaf: str, n_layers: int, *, gguf: bool = False) -> list[str]:
    """Names of the tensors that make up a leaf: one per layer, or a single one.

    >>> in_files("layers/q/kernel", 2)
    ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight']
    >>> in_files("layers/q/bias", 2, gguf=True)
    ['blk.0.attn_q.bias', 'blk.1.attn_q.bias']
    >>> in_files("norm/scale", 2)
    ['model.norm.weight']
    """
    if leaf in _OUTSIDE:
        return [f"{_OUTSIDE[leaf][gguf]}.weight"]
    _, part, kind = leaf.split("/")
    end = "bias" if kind == "bias" else "weight"
    stem = "blk" if gguf else "model.layers"
    return [f"{stem}.{i}.{_PARTS[part][gguf]}.{end}" for i in range(n_layers)]


def in_adapters(leaf: str, n_layers: int, matrix: str) -> list[str]:
    """PEFT's names of a kernel's adapter; `matrix` is "A" or "B".

    >>> in_adapters("layers/o/kernel", 1, "A")
    ['base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight']
    """
    return [
        f"base_model.model.{name.removesuffix('weight')}lora_{matrix}.weight"
        for name in in_files(leaf, n_layers)
    ]
