"""What an evaluation shows: tables, files, the page and its pictures."""
