"""Environment variables as typed settings."""
