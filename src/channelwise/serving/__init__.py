"""An OpenAI-compatible server for one model, on transformers' own handlers of requests."""
