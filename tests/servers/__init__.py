"""Real servers for the tests, and small clients of our own that talk to them.

The clients share no code with the product and know nothing of its libraries, so that they can't share its mistakes.
"""
