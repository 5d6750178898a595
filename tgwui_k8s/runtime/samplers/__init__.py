"""What the NumPy and the torch sampler share, and the torch half of the array kernels.

`noise`, `history`, `plan`, `kernels`, `pipeline` and `report` import no torch; the `torch_*`
modules do.
"""
