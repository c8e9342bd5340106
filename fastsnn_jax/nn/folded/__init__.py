"""Networks for inference: kernels quantised once, spikes in words."""
