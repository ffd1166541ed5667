"""Trains super-resolution by latent diffusion: closed-form start, regression, denoiser, figures on held-out places."""
