"""Impressions as structured items: findings with their attributes, and where the report says so."""
