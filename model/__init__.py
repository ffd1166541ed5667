"""Holds EO-VAE in torch: network, weights, production encoder, losses, training. Knows no cube and no catalogue."""
