"""Language models: decoders, tokenizers, generation, likelihoods."""
