"""What the simulated servers and the real ones have in common: the same tests run against both."""
