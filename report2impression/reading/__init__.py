"""Report pairs from folders, files and hub sets, row by row, each bad row named."""
