"""Steps on a GPU: planned in one array of integers, computed by kernels of ours, and recorded."""
