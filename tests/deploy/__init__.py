"""What `deploy/` and the workflows hold, against the schemas and linters that install from package registries."""
