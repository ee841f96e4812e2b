"""What a decoder is built from: one frozen config, read from a Hugging Face `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxunlearn.nn.files.configs import TRANSFORMER, flag_of, number_of, size_of
from jaxunlearn.nn.layers.rotary import RopeScaling

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # `model_type` of config.json
_LARGEST = 1e30  # of numbers that are no sizes
_ROPE = ("rope_parameters", "rope_scaling")  # of transformers 5, and of the Hub
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclasses.dataclass(frozen=True)
class Config:
    """A decoder of the Llama and Qwen families.

    Attributes:
        family: "llama" (2, 3.x), "qwen2" (2, 2.5) or "qwen3".
        vocabulary: number of tokens.
        width: width of the residual stream.
        mlp_width: width of the gated layer.
        n_layers: depth.
        n_heads: query heads.
        n_kv_heads: key and value heads; each serves `n_heads / n_kv_heads` query heads.
        head_dim: width of one head, not necessarily `width / n_heads`.
        context: largest number of positions.
        eps: what the RMS norms add to the mean square.
        rope_theta: base of the rotary frequencies.
        rope_scaling: frequency scaling of Llama 3, or None.
        tied: whether the output layer is the embedding.
        qkv_bias: whether queries, keys and values have biases.
        output_bias: whether the attention's output has one.
        mlp_bias: whether the MLP's three layers have them.
        qk_norm: whether queries and keys are normalised per head, before the rotation.
        bos: token that begins a text, or None.
        eos: tokens that end one.
    """

    family: str
    vocabulary: int
    width: int
    mlp_width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    context: int
    eps: float = 1e-6
    rope_theta: float = 1e4
    rope_scaling: RopeScaling | None = None
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self):
        if self.family not in ARCHITECTURES:
            raise ValueError(
                f"architecture is {self.family!r}; supported are {', '.join(ARCHITECTURES)}"
            )
        sizes = ("vocabulary", "width", "mlp_width", "n_layers", "n_heads", "n_kv_heads")
        for name in (*sizes, "head_dim", "context"):
            size_of(vars(self), name)
        for name in ("eps", "rope_theta"):
            number_of(vars(self), name)
        for name in ("tied", "qkv_bias", "output_bias", "mlp_bias", "qk_norm"):
            flag_of(vars(self), name)
        for token in (*self.eos, *([] if self.bos is None else [self.bos])):
            if type(token) is not int:
                raise ValueError(f"config: bos or eos is {token!r}; numbers of tokens are needed")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"config: n_heads is {self.n_heads}, no multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"config: head_dim is {self.head_dim}; rotary pairs need an even one")


def from_hugging_face(config: Mapping[str, Any]) -> Config:
    """Reads the content of a `config.json`, in the Hub's form or that of transformers 5.

    Raises:
        ValueError: an architecture, a rotary scaling or an option that this module does not
            compute, or a size that is missing; it is named.
    """
    family = config.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"model_type is {family!r}; supported architectures are {', '.join(ARCHITECTURES)}"
        )
    _refuse_what_is_not_computed(config)
    theta, scaling = _rope(config)
    sizes = {ours: size_of(config, theirs) for ours, theirs in TRANSFORMER.items()}
    n_heads = sizes["n_heads"]
    bias = flag_of(config, "attention_bias") and family != "qwen2"
    # Defaults are those of transformers, for what a config.json leaves out.
    head_dim = 128 if family == "qwen3" else sizes["width"] // n_heads
    return Config(
        family=family,
        vocabulary=size_of(config, "vocab_size"),
        **sizes,
        n_kv_heads=size_of(config, "num_key_value_heads", n_heads),
        head_dim=size_of(config, "head_dim", head_dim),
        context=size_of(config, "max_position_embeddings", 2048 if family == "llama" else 32768),
        eps=number_of(config, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=flag_of(config, "tie_word_embeddings"),
        qkv_bias=bias or family == "qwen2",
        output_bias=bias,
        mlp_bias=flag_of(config, "mlp_bias") and family == "llama",
        qk_norm=family == "qwen3",
        bos=next(iter(token_ids(config, "bos_token_id")), None),
        eos=token_ids(config, "eos_token_id"),
    )


def token_ids(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The tokens of an entry that has one, several or none.

    Raises:
        ValueError: something else stands there.
    """
    given = config.get(name)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in ids):
        raise ValueError(f"config: {name} is {given!r}; whole numbers >= 0 are needed")
    return tuple(dict.fromkeys(ids))


def to_hugging_face(config: Config, dtype: str) -> dict[str, Any]:
    """The content of a `config.json`, in the Hub's form; the inverse of `from_hugging_face`.

    Args:
        config: the decoder.
        dtype: type of the weights beside it, such as "float32".
    """
    scaling = config.rope_scaling
    hub = {
        "architectures": [f"{config.family.capitalize()}ForCausalLM"],
        "model_type": config.family,
        "vocab_size": config.vocabulary,
        **{theirs: getattr(config, ours) for ours, theirs in TRANSFORMER.items()},
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        },
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "bos_token_id": config.bos,
        "eos_token_id": list(config.eos) if len(config.eos) > 1 else next(iter(config.eos), None),
        "torch_dtype": dtype,
    }
    if config.family != "qwen2":
        hub["attention_bias"] = config.output_bias
    if config.family == "llama":
        hub["mlp_bias"] = config.mlp_bias
    return hub


def _refuse_what_is_not_computed(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"config: hidden_act is {activation!r}; only 'silu' is computed")
    # A sliding window is there in many Qwen configs, and switched off.
    if config.get("use_sliding_window") and config.get("sliding_window"):
        first = config.get("max_window_layers", 0)
        if not isinstance(first, int) or first < size_of(config, "num_hidden_layers"):
            raise ValueError(
                "config: use_sliding_window is true; attention within a window is not computed"
            )
    layers = config.get("layer_types") or []
    if not isinstance(layers, list) or any(one != "full_attention" for one in layers):
        raise ValueError(f"config: layer_types is {layers!r}; only 'full_attention' is computed")
    if config.get("quantization_config"):
        raise ValueError("config: quantization_config is set; weights must not be quantised")
    if config.get("is_causal", True) is not True:
        raise ValueError(f"config: is_causal is {config['is_causal']!r}; only true is computed")
    _check_partial("partial_rotary_factor", config.get("partial_rotary_factor"))


def _check_partial(name: str, value: Any) -> None:
    if value is not None and value != 1:
        raise ValueError(f"config: {name} is {value!r}; only 1 is computed")


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies; entries must not contradict each other."""
    entries = {name: _of_all_layers(name, config[name]) for name in _ROPE if config.get(name)}
    scalings = {name: _scaling(name, entry) for name, entry in entries.items()}
    thetas = {name: entry.get("rope_theta") for name, entry in entries.items()}
    thetas |= {"config": config.get("rope_theta")}
    thetas = {
        name: _positive(f"rope_theta of {name}", theta)
        for name, theta in thetas.items()
        if theta is not None
    }
    for what, said in (("scaling", scalings), ("rope_theta", thetas)):
        if len(set(said.values())) > 1:
            raise ValueError(f"config: {' and '.join(said)} differ in {what}; keep what is meant")
    return next(iter(thetas.values()), 1e4), next(iter(scalings.values()), None)


def _of_all_layers(name: str, entry: Any) -> dict[str, Any]:
    """A rotary entry, which may stand by type of layer where all types have the same."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"config: {name} is {entry!r}; a JSON object is needed")
    if any(isinstance(value, Mapping) for value in entry.values()):
        first, *others = entry.values()
        if not isinstance(first, Mapping) or any(other != first for other in others):
            raise ValueError(f"config: {name} differ between {sorted(entry)}")
        entry = first
    return dict(entry)


def _scaling(name: str, entry: dict[str, Any]) -> RopeScaling | None:
    """What a rotary entry asks for; whatever is not computed is refused."""
    kinds = {entry[key] for key in ("rope_type", "type") if entry.get(key) is not None}
    if len(kinds) > 1 or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"config: rope_type of {name} is {kinds}; one is needed")
    kind = next(iter(kinds), "default")
    if kind not in ("default", "llama3"):
        raise ValueError(f"config: rope_type is {kind!r}; 'default' and 'llama3' are computed")
    _check_partial(f"partial_rotary_factor of {name}", entry.get("partial_rotary_factor"))
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", _LLAMA3[-1]}
    known |= set(_LLAMA3) if kind == "llama3" else set()
    for key, value in entry.items():
        if key not in known and value is not None and (key, value) != ("factor", 1):
            raise ValueError(
                f"config: {name} has {key} = {value!r}, which rope_type {kind!r} does not have"
            )
    if kind == "default":
        return None
    missing = [key for key in _LLAMA3 if entry.get(key) is None]
    if missing:
        raise ValueError(f"config: rope_type is 'llama3', but {missing[0]} is missing")
    factor, low, high, context = (_positive(f"{key} of {name}", entry[key]) for key in _LLAMA3)
    if low >= high:
        raise ValueError(
            f"config: {name} has low_freq_factor {low}, not below {high}, the high one"
        )
    return RopeScaling(factor, low, high, int(context))


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < _LARGEST:
        raise ValueError(f"config: {name} is {value!r}; a finite number above 0 is needed")
    return float(value)
