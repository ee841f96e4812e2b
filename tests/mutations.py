"""Changes of files that a reader must survive: of bytes, of JSON, of what headers declare."""

import json
import struct
import zlib

from hypothesis import strategies as st

NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63,
    2**64 - 1,
)
# Values that stand where another kind of value is expected; None among the last is no JSON value.
VALUES = (
    None, True, -1, 0, 3, 2.5, 1e999, 10**30, 2**31, 2**63, "", "3", "nothing", "../../x", "\ud83d",
    [], [3], ["3"], [[]], [1, [2, [3]]], [-1, -4], [2**40, 2**40], {}, {"a": 1}, {"r": [None]},
)  # fmt: skip
DEEP = b"[" * 100_000


@st.composite
def of_bytes(draw, content: bytes) -> bytes:
    """Bits, numbers and pieces changed, one to three times."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        # Headers come first, or last: half of all changes are there.
        at = draw(st.sampled_from((at, at % 64, at % 512, len(content) - 1 - at % 128)))
        at = max(0, min(at, len(content) - 1))
        match draw(st.sampled_from(("flip", "byte", "number", "cut", "insert", "repeat", "drop"))):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if content:
                content[at] = draw(st.integers(0, 255))
            case "number":
                order, form = draw(st.sampled_from("<>")), draw(st.sampled_from("BHIQ"))
                number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * struct.calcsize(form))
                written = struct.pack(order + form, number)
                content[at : at + len(written)] = written
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=40))
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 400))]
            case "drop":
                del content[at : at + draw(st.integers(1, 400))]
    return bytes(content)


@st.composite
def of_json(draw, content: bytes) -> bytes:
    """An entry of a JSON text replaced, dropped or doubled under another name."""
    value = json.loads(content)
    places = list(_places(value))
    if not places or draw(st.integers(0, 40)) == 0:
        return draw(st.sampled_from((DEEP, b'{"a":' * 20_000, b"[]", b"{}", b'"x"', b"null", b"")))
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(("put", "put", "put", "drop", "add", "deep"))):
        case "put":
            holder[key] = draw(st.sampled_from(VALUES))
        case "drop":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[draw(st.sampled_from(("a", "", "\x1b[2J", "__class__")))] = holder[key]
        case _:
            holder[key] = "DEEP"
    text = json.dumps(value, ensure_ascii=True).encode()
    return text.replace(b'"DEEP"', DEEP + b"]" * len(DEEP), 1)


def _places(value):
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(entries)[:200]:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


@st.composite
def of_safetensors(draw, content: bytes) -> bytes:
    """The header changed as JSON, and its length with it."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = draw(of_json(content[8:start]))
    return len(header).to_bytes(8, "little") + header + content[start:]


@st.composite
def of_lines(draw, content: bytes) -> bytes:
    """A line of JSON lines changed."""
    lines = content.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = draw(of_json(lines[at]))
    return b"\n".join(lines) + b"\n"


@st.composite
def of_png(draw, content: bytes) -> bytes:
    """Sizes, bits and kind that the header of a PNG declares, with a checksum that fits."""
    width, height = (draw(st.sampled_from((1, 3, 2**13, 2**16, 2**31 - 1))) for _ in "wh")
    bits, kind = draw(st.sampled_from((1, 2, 8, 16))), draw(st.sampled_from((0, 2, 3, 4, 6)))
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return content[:12] + body + struct.pack(">I", zlib.crc32(body)) + content[33:]


def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The header of an `.npy` file that says so, whatever follows."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


DESCRIPTIONS = ("<f4", "|u1", "<i8", "|O", "<U0", "|V0", "<U4", ">c16", "<M8[ns]", "nothing")
SHAPES = ((2**40,), (2**62, 2**62), (-1, -4), (0, 2**40), (8, 4, 4, 3), (), (2,) * 70)


@st.composite
def of_npy(draw, content: bytes) -> bytes:
    """A header that declares something else."""
    header = npy_header(draw(st.sampled_from(DESCRIPTIONS)), draw(st.sampled_from(SHAPES)))
    return header + content[128:]


_SIZES = dict(
    zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), (1, 1, 2, 2, 4, 4, 4, 1, 8, 8, 8), strict=True)
)
_NESTED = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20_000
_ENTRIES = (
    *(struct.pack("<II", 4, number) for number in (0, 1, 3, 2**31, 2**32 - 1)),
    *(struct.pack("<IQ", 10, number) for number in (0, 2**40, 2**63)),
    struct.pack("<Ii", 5, -1), struct.pack("<If", 6, float("nan")), struct.pack("<Id", 12, 1e300),
    struct.pack("<IB", 7, 1), struct.pack("<IQ", 8, 1) + b"x", struct.pack("<IQ", 8, 2**62),
    struct.pack("<IIQI", 9, 4, 1, 3), struct.pack("<IIQ", 9, 0, 2**32 - 1),
    struct.pack("<IIQ", 9, 8, 2**60), struct.pack("<IIQ", 9, 8, 0), _NESTED,
)  # fmt: skip


@st.composite
def of_gguf(draw, content: bytes) -> bytes:
    """A value of the metadata of another kind or size, or a tensor that is declared another."""
    names = [name for name in _GGUF_NAMES if name in content]
    name = draw(st.sampled_from(names))
    at = content.index(name) + len(name)
    if name.endswith((b".weight", b".bias")):
        (n_axes,) = struct.unpack_from("<I", content, at)
        end = at + 4 + 8 * n_axes + 12
        sides = draw(st.lists(st.sampled_from(NUMBERS), min_size=0, max_size=5))
        kind, offset = draw(st.sampled_from((0, 1, 2, 8, 30, 999))), draw(st.sampled_from(NUMBERS))
        told = draw(st.sampled_from((len(sides), 2**32 - 1)))
        new = struct.pack(f"<I{len(sides)}QIQ", told, *sides, kind, offset)
        return content[:at] + new + content[end:]
    (kind,) = struct.unpack_from("<I", content, at)
    size = 4 + _SIZES[kind] if kind in _SIZES else 4
    return content[:at] + draw(st.sampled_from(_ENTRIES)) + content[at + size :]


_GGUF_NAMES = tuple(
    name.encode()
    for name in (
        *(f"llama.{key}" for key in (
            "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv",
            "attention.layer_norm_rms_epsilon", "rope.freq_base", "context_length",
        )),
        "general.architecture", "general.alignment", "split.count",
        *(f"tokenizer.ggml.{key}" for key in (
            "bos_token_id", "eos_token_id", "model", "pre", "tokens", "merges", "token_type",
        )),
        "token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_up.weight", "output_norm.weight",
    )
)  # fmt: skip
