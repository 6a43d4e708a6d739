"""Speed and yield of what makes and looks through data."""
