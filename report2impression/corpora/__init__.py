"""Makers of pairs: from MIMIC-III's notes, and from a grammar of our own."""
