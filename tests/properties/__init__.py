"""Rules that must hold for any input, looked for with hypothesis."""
