"""What a batch is for: a bulk request, or messages published to another exchange."""
