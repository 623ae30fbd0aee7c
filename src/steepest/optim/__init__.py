"""Training optimisers that use curvature or the geometry of the weights, as drop-in `torch.optim` optimisers."""
