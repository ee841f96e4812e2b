"""Weights in files: `folder` finds them, `reader` and `writer` go by a network's `tables`.

Formats are `safetensors`, `gguf` (read only) and `configs` (JSON); `peft` is for adapters.
"""
