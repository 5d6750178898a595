"""The torch side that loaders share: paged attention, KV tensors, the device sampler."""
