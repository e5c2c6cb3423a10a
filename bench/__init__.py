"""Measurements that are kept; not part of the tests."""
