"""Which operation is sent when: order, batches, retries."""
