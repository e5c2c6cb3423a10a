"""How much may be read and sent."""
