"""Weights in files: safetensors, GGUF, configs, adapters."""
