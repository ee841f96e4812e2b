"""Verbs that run in the process of the tests find JAX begun, with one device, in whatever order."""

import jax

jax.devices()
