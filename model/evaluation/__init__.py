"""Says what reconstructions are worth: figures with intervals, baselines of one size, rate-distortion, a report."""
