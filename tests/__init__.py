"""Tests of the sidecar and of what runs it."""
