"""Trains EO-VAE: the shipped weights from nothing, finetuning, and the distillation of a FLUX.2 autoencoder."""
