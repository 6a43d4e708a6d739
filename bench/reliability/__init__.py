"""Runs under kills, torn writes and full disks; the mutation score of what saves them."""
