"""What the leaves of a ViT are called in Hugging Face's folders, and how they lie there."""

from jaxunlearn.nn.files.tables import Form, Row, Table, layer_rows, patches
from jaxunlearn.nn.images.vit_config import Config

HEAD = "classifier"
_LAYER = {
    "attention_norm": "layernorm_before",
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "o": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def table(config: Config) -> Table:
    """Names and layouts; `ViTModel` writes them without "vit.", and a pooler, which is left out."""
    embeddings, channels = "vit.embeddings", config.image[-1]
    cut = patches(config.patch, channels)
    rows = [
        Row("embed/cls", f"{embeddings}.cls_token", Form(view=(1, 1, -1))),
        Row(
            "embed/positions", f"{embeddings}.position_embeddings", Form(view=(1, -1, config.width))
        ),
        *layer_rows("embed/patch", f"{embeddings}.patch_embeddings.projection", cut),
        *layer_rows("norm", "vit.layernorm"),
        *layer_rows("head", HEAD),
    ]
    for ours, theirs in _LAYER.items():
        rows += layer_rows(f"layers/{ours}", f"vit.encoder.layer.{{}}.{theirs}")
    return Table(tuple(rows), ignore=r"(vit\.)?pooler\..*", prefix="vit.")
