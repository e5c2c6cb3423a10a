"""What a response means for each message and for the requests to come."""
