"""Elasticsearch at the wire: the only home of its client library."""
