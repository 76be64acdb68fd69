"""The row plan: which pieces of which documents each row holds."""
