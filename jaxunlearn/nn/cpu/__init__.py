"""Lowerings that only a CPU needs; nobody outside `nn` sees them."""
