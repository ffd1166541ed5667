"""EO-VAE in torch: network, weights, production encoder, losses and training. Knows nothing of cubes or catalogues."""
