"""How every program of the project behaves: settings, errors, privacy, files, tables."""
