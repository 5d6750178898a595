"""What `benchmarks/gateway.py` is made of: a fake engine, the proxies, and who asks them."""
