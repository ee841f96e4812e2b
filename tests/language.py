"""A tiny language model in a folder, as users have large ones."""

import jax
import tokenizers

from jaxunlearn.data import text
from jaxunlearn.nn.language import decoder, weights


def tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE with some merges, and the special tokens of the chat format."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", *text.TEMPLATES["chatml"].special],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [q.question + " " + q.answer for q in text.refusals(200)]
    made.train_from_iterator([*corpus, "system user assistant", text.SYSTEM], trainer)
    return made


def config(**changes) -> decoder.Config:
    """A Llama of two layers."""
    made = tokenizer()
    sizes = dict(vocabulary=made.get_vocab_size(), width=32, mlp_width=48, n_layers=2)
    heads = dict(n_heads=4, n_kv_heads=2, head_dim=8, context=256)
    eos = (made.token_to_id("<|im_end|>"),)
    return decoder.Config(**dict(family="llama", tied=True, eos=eos) | sizes | heads | changes)


def save(folder, seed: int = 0, **changes):
    """Writes the model; returns its folder."""
    own = config(**changes)
    params, _ = decoder.decoder(own).init(jax.random.key(seed))
    template = "<|im_start|> <|im_end|>"  # enough for the format to be known
    weights.save(folder, own, params, tokenizer=tokenizer(), chat_template=template)
    return folder
