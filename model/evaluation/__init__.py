"""What reconstructions are worth: figures with intervals, baselines at the same size, rate-distortion, a report."""
