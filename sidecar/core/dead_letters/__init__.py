"""Dead letters, read and made into messages again."""
