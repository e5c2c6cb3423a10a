"""Deterministic simulation: bad days from seeds, a judge who knows nothing of the product, and traces."""
