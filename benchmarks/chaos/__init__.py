"""What `benchmarks/gateway_chaos.py` is made of."""
