"""The promise of the contract on real servers, with faults."""
