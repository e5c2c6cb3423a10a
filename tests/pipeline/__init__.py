"""The loops over the simulated servers, in virtual time."""
