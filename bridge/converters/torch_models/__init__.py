"""Torch modules, followed by torch.fx."""
