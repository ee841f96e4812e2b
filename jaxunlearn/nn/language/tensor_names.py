"""What the leaves of a decoder are called in files of Hugging Face and of llama.cpp.

>>> HUGGING_FACE.names("layers/q/kernel", 2)
('model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.q_proj.weight')
>>> GGUF.names("layers/q/bias", 2)
('blk.0.attn_q.bias', 'blk.1.attn_q.bias')
>>> HUGGING_FACE.names("norm/scale", 2)
('model.norm.weight',)
"""

from jaxunlearn.nn.files.tables import Table, layer_rows

_LAYER = {  # ours, Hugging Face's, llama.cpp's
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
    "embed": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
}


def _table(column: int, layer: str, ignore: str = "") -> Table:
    stems = {ours: theirs[column] for ours, theirs in _OUTSIDE.items()}
    stems |= {f"layers/{ours}": f"{layer}.{{}}.{theirs[column]}" for ours, theirs in _LAYER.items()}
    return Table(tuple(row for stem in stems.items() for row in layer_rows(*stem)), ignore)


HUGGING_FACE = _table(0, "model.layers", r".*rotary_emb\.inv_freq")
GGUF = _table(1, "blk")
