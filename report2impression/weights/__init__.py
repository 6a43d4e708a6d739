"""Bases and adapters: found, checked, loaded, saved, made, published."""
