"""Counters, histograms, and a snapshot of them."""
