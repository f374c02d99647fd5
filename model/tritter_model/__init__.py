"""The bundled model: a ternary, long-context transformer that depends on PyTorch alone."""
