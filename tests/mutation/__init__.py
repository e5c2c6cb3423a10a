"""Change the product in one place at a time, and see which test without servers finds it.

``python -m tests.mutation --help`` says how to run it, docs/reliability.md what came of it.
"""
