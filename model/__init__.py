"""Holds EO-VAE in torch: network, weights, production encoder, losses, training. Knows nothing of cubes or catalogues."""
