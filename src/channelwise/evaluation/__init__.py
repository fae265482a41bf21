"""Measuring a model: perplexity, sentence embeddings against the floating-point model, sizes."""
