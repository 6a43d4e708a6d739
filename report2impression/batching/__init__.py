"""Pairs become tokens, tokens a plan, the plan batches."""
