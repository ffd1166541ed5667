"""Makes pairs of one ground at two resolutions, encoded: from Sen2NAIP, Wald's protocol or two cubes, to training."""
