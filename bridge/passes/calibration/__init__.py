"""Fitting a spiking network to few time steps."""
