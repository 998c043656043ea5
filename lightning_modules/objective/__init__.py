"""The objective as pure functions over tensors: no Lightning, no models, no tokenizers."""
