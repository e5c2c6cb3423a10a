"""What the documentation says, against the code."""
